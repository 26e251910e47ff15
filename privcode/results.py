"""What a stage found: frozen outputs, written as JSON artifacts and shown unchanged in the report."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from privcode.specs import Clipping, Unit


class Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Mechanism(Result):
    """A Poisson-subsampled Gaussian mechanism, composed over ``steps``: all that an accountant needs."""

    sample_rate: float
    noise_multiplier: float
    steps: int


class PrivacyPlan(Result):
    """One object for the sampler, the calibration, the ledger and the receipt, so that they can't disagree.

    ``records`` counts the private records including planted canaries. ``units`` is what the sampler draws from: the
    records themselves, or groups of at most ``max_records_per_unit`` records with one ``unit_id``; ``expected_batch``
    counts units, and ``sample_rate = expected_batch / units``.
    """

    target_epsilon: float
    target_delta: float
    records: int
    unit: Unit
    units: int
    max_records_per_unit: int
    expected_batch: int
    sample_rate: float
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    clipping: Clipping

    @property
    def mechanism(self) -> Mechanism:
        return Mechanism(sample_rate=self.sample_rate, noise_multiplier=self.noise_multiplier, steps=self.steps)


class SamplerEvidence(Result):
    """What the sampler did in ``test_lots`` lots that were drawn before the first step and never trained on.

    The training lots' own sizes are private; these are independent of them, and of every record. ``mean_lot`` and
    ``lot_variance`` count units; ``expected_*`` is what Poisson sampling gives. ``p_value``: of all tests together,
    for "the lots are Poisson samples"; a run with less than 1e-9 is refused.
    """

    test_lots: int
    units: int
    sample_rate: float
    mean_lot: float
    expected_mean_lot: float
    lot_variance: float
    expected_lot_variance: float
    p_value: float


class PrivacyReceipt(Result):
    """What the sanitize stage really did. ``unit``: what is protected as one, in words. ``steps_taken`` counts each
    step whose noise was drawn, those of lost attempts included; ``epsilon_spent`` is for ``steps_taken`` by PLD,
    ``epsilon_rdp`` the same by RDP."""

    plan: PrivacyPlan
    unit: str
    steps_taken: int
    epsilon_spent: float
    epsilon_rdp: float
    canaries: int
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampling: Literal["poisson"] = "poisson"
    sampling_seed: Literal["secret", "given"]
    sampler: SamplerEvidence
    accountant: Literal["pld"] = "pld"
    trainable_parameters: int
    signal_to_noise: float


class Outcome(StrEnum):
    """Outcome of one execution. ``sandbox_unavailable`` is ours and never the program's failure."""

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    UNSUPPORTED_LANGUAGE = "unsupported_language"
    NO_CODE = "no_code"
    SANDBOX_UNAVAILABLE = "sandbox_unavailable"


class ExecutionOutcome(Result):
    """What happened to one program.

    ``exit_code``: the program's, or its compiler's where ``duration_s`` is None; None where it did not end by itself.
    ``signal``: what ended it, by exit codes above 128 as shells tell it. ``duration_s`` and ``compile_s``: wall-clock
    seconds, None where it never started, or had nothing to compile. ``cpu_s``: of all its processes, compiler
    included. ``peak_memory_mib``: of its largest process, or of all together where that was seen to be more; compiler
    included, too.
    ``stdout`` and ``stderr`` are cut at the limit; a compiler's output is in ``stderr``.
    """

    outcome: Outcome
    exit_code: int | None = None
    signal: int | None = None
    duration_s: float | None = None
    compile_s: float | None = None
    cpu_s: float | None = None
    peak_memory_mib: float | None = None
    stdout: str = ""
    stderr: str = ""


class Candidate(Result):
    """One completion of the junior. ``id`` is unique in the job."""

    id: str
    prompt_index: int
    problem: str
    completion: str
    finish_reason: Literal["stop", "length"]


class ExecutedCandidate(ExecutionOutcome):
    """A candidate after stage 4. ``code`` is empty for ``no_code``."""

    id: str
    problem: str
    language: str
    code: str


class ScoredCandidate(Result):
    """A candidate that ran, after stage 5. ``f1`` is BERTScore F1 of ``description`` against ``problem``, None
    where no description matched. Every candidate keeps its score, so that tau can be changed later."""

    id: str
    problem: str
    code: str
    description: str | None
    f1: float | None
    kept: bool
    reason: Literal["kept", "no_description", "below_tau"]


class SyntheticPair(Result):
    """One row of the released synthetic data set."""

    problem: str
    solution: str
    lang: str


class Rate(Result):
    """A share with its denominator, what was left out of it, and a 95 % Wilson interval."""

    successes: int
    n: int
    excluded: int
    value: float | None
    low: float
    high: float


def wilson(*, successes: int, n: int, excluded: int = 0, z: float = 1.959963984540054) -> Rate:
    """Wilson score interval (Wilson 1927) at 95 %; with n = 0 the share is unknown and the interval is [0, 1]."""
    if not 0 <= successes <= n:
        raise ValueError(f"successes {successes} is not in [0, n={n}]")
    if n == 0:
        return Rate(successes=0, n=0, excluded=excluded, value=None, low=0.0, high=1.0)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Rate(successes=successes, n=n, excluded=excluded, value=share, low=low, high=high)


class BenchmarkScore(Result):
    """pass@1 of one model on one benchmark."""

    benchmark: str
    model: Literal["base", "tuned"]
    pass_at_1: Rate
    outcomes: dict[str, int]


class Evaluation(Result):
    scores: Sequence[BenchmarkScore]


class CanaryFinding(Result):
    """Whether one planted canary was found in what a model or the synthetic data says. The canary's text is not
    here: ``kind`` is e-mail, name, IP address, password or user name."""

    kind: str
    leaked_by: Sequence[Literal["junior", "synthetic", "premium"]]


class CanaryAudit(Result):
    """Leakage rate of the paper's canaries: share of the planted canaries found anywhere. ``injected`` False: the job
    asked for none, and the rate says nothing."""

    injected: bool
    canary_rate: int
    prompts: int
    samples_per_prompt: int
    findings: Sequence[CanaryFinding]
    leakage: Rate


class Funnel(Result):
    """Where the candidates went: counts per step, and a count for each reason of loss. ``ran`` and ``described`` are
    None where the recipe does not filter by them."""

    candidates: int
    ran: int | None
    described: int | None
    kept: int
    lost: dict[str, int]


JsonObject = dict[str, Any]

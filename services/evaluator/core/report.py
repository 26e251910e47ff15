"""The report of a job: what was guaranteed, what came out, how good it is, and how far to believe each figure.

Holds counts, rates and settings only. Training losses, batch sizes and clipping statistics are computed from private
data without differential privacy and are no input here; problems and code are read to be counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from privcode.errors import StageFailed
from privcode.recipes import RECIPES, Label
from privcode.results import (
    BenchmarkScore,
    CanaryAudit,
    Candidate,
    Evaluation,
    ExecutedCandidate,
    Funnel,
    Outcome,
    PrivacyReceipt,
    Result,
    ScoredCandidate,
    SyntheticPair,
)
from privcode.specs import JobSpec, RoundTripSpec, SynthesizeSpec
from services.evaluator.core import statements
from services.evaluator.core.history import Budget, DatasetInfo, History, JobInfo, PublicData
from services.evaluator.core.notices import Notice, notices


class Guarantee(Result):
    """``target_epsilon`` and ``target_delta`` as the request gave them; the receipt as the sanitize stage wrote it. All
    three are None in a job without a privacy mechanism.

    ``covers``: whether the guarantee is about all that the job releases (``released``), about the training with
    privacy but not about an earlier one on the same data (``last_training``), or there is none (``nothing``).
    """

    covers: Literal["released", "last_training", "nothing"]
    target_epsilon: float | None
    target_delta: float | None
    receipt: PrivacyReceipt | None
    statement: str


class Comparison(Result):
    """pass@1 of the base and the tuned premium model on one benchmark, asked with the same prompts."""

    benchmark: str
    base: BenchmarkScore
    tuned: BenchmarkScore
    statement: str


class Leakage(Result):
    result: CanaryAudit
    statement: str


class Candidates(Result):
    """``execution_filter``: what the filter does and does not show, or that there was none. ``tau``: the least
    BERTScore F1 that was kept, None where nothing was filtered."""

    funnel: Funnel
    execution_filter: str
    tau: float | None
    prompt_source: Literal["public"]


class StageTime(Result):
    """Whole seconds of wall-clock time."""

    name: str
    seconds: int


class FigureLabel(Result):
    """Where a part of the report comes from. ``public``: no private record is in it. ``dp``: computed from what an
    accounted mechanism put out. ``private``: computed from private data that no mechanism protects.
    ``operational``: of the service, not covered by the guarantee."""

    label: Literal["public", "dp", "private", "operational"]
    reason: str


class Report(Result):
    """``report_json.json``. ``labels`` has an entry for each part that holds figures. ``label``: of the whole report.
    ``candidates`` is None in a recipe that synthesizes nothing."""

    schema_version: Literal[2] = 2
    label: Literal["dp", "private"]
    job: JobInfo
    recipe: str
    dataset: DatasetInfo
    rows_of_job: str | None
    prompts: PublicData | None
    warm_up: PublicData | None
    models: dict[str, str]
    guarantee: Guarantee
    candidates: Candidates | None
    quality: Sequence[Comparison]
    audit: Leakage
    stages: Sequence[StageTime]
    budget: Budget
    warnings: Sequence[Notice]
    labels: dict[str, FigureLabel]


LABELS: Final[Mapping[str, FigureLabel]] = {
    "guarantee": FigureLabel(
        label="public",
        reason="From the job's settings and the numbers of records and units, which are treated as public, and from "
        "lots that were drawn as a test and not trained on.",
    ),
    "candidates": FigureLabel(
        label="dp",
        reason="Counted on answers of the differentially private junior model to public prompts.",
    ),
    "quality": FigureLabel(
        label="dp",
        reason="Measured on models made from differentially private data, on a public benchmark.",
    ),
    "audit": FigureLabel(
        label="dp",
        reason="Searched in what the released models say and in the released data; the canaries are invented.",
    ),
    "budget": FigureLabel(label="public", reason="From the ledger of the data set: settings of its jobs only."),
    "stages": FigureLabel(
        label="operational",
        reason="Wall-clock time in whole seconds. It depends on how many records were drawn and on how long they are, "
        "and the guarantee does not cover it.",
    ),
}


_NOT_PROTECTED: Final = FigureLabel(
    label="private",
    reason="Computed from a model that was trained on private data without privacy: it may tell of single records, and "
    "leaves only to a privacy officer.",
)


def build_report(
    *,
    spec: JobSpec,
    label: Label,
    history: History,
    receipt: PrivacyReceipt | None,
    candidates: Sequence[Candidate] | None,
    executed: Sequence[ExecutedCandidate] | None,
    scored: Sequence[ScoredCandidate] | None,
    synthetic: Sequence[SyntheticPair] | None,
    evaluation: Evaluation,
    audit: CanaryAudit,
) -> Report:
    """Put together what the stages found; None for what the recipe's stages do not write. ``label``: of the report.

    Raises :class:`StageFailed` (``inconsistent_artifacts``) if the artifacts don't belong together: a receipt for
    another target, candidates that were not executed, or passed ones that were not scored.
    """
    private = label is Label.PRIVATE
    guarantee = _guarantee(spec, receipt, private=private)
    found = _candidates(spec, candidates, executed, scored, synthetic)
    return Report(
        label="private" if private else "dp",
        job=history.job,
        recipe=RECIPES[spec.recipe].purpose,
        dataset=history.dataset,
        rows_of_job=spec.rows_of_job,
        prompts=history.prompts,
        warm_up=history.warm_up,
        models=spec.models,
        guarantee=guarantee,
        candidates=found,
        quality=[_comparison(evaluation, benchmark) for benchmark in spec.evaluate.benchmarks],
        audit=Leakage(result=audit, statement=statements.canaries(audit, guaranteed=not private)),
        stages=[StageTime(name=stage.name, seconds=round(stage.seconds)) for stage in history.stages],
        budget=history.budget,
        warnings=notices(spec=spec, history=history, receipt=receipt, evaluation=evaluation, audit=audit),
        labels=_labels(receipt, private=private, with_candidates=found is not None),
    )


def _guarantee(spec: JobSpec, receipt: PrivacyReceipt | None, *, private: bool) -> Guarantee:
    if (receipt is None) != (spec.privacy is None):
        raise _inconsistent("a receipt without a target, or a target without a receipt")
    if receipt is None or spec.privacy is None:
        return Guarantee(
            covers="nothing",
            target_epsilon=None,
            target_delta=None,
            receipt=None,
            statement=statements.no_guarantee(),
        )
    targets = (spec.privacy.target_epsilon, spec.privacy.target_delta)
    if (receipt.plan.target_epsilon, receipt.plan.target_delta) != targets:
        raise _inconsistent("the privacy receipt is for another target than the job's spec")
    return Guarantee(
        covers="last_training" if private else "released",
        target_epsilon=spec.privacy.target_epsilon,
        target_delta=spec.privacy.target_delta,
        receipt=receipt,
        statement=statements.partial_guarantee(receipt) if private else statements.guarantee(receipt),
    )


def _candidates(
    spec: JobSpec,
    candidates: Sequence[Candidate] | None,
    executed: Sequence[ExecutedCandidate] | None,
    scored: Sequence[ScoredCandidate] | None,
    synthetic: Sequence[SyntheticPair] | None,
) -> Candidates | None:
    if candidates is None:
        return None
    if executed is not None and scored is not None:
        return Candidates(
            funnel=_funnel(candidates, executed, scored),
            execution_filter=statements.execution_filter(time_limit_s=spec.execute.time_limit_s),
            tau=spec.section(RoundTripSpec).tau,
            prompt_source=spec.section(SynthesizeSpec).prompt_source,
        )
    if synthetic is None or len(synthetic) > len(candidates):
        raise _inconsistent("the synthetic pairs are not those of the candidates")
    lost = len(candidates) - len(synthetic)
    return Candidates(
        funnel=Funnel(
            candidates=len(candidates),
            ran=None,
            described=None,
            kept=len(synthetic),
            lost={Outcome.NO_CODE.value: lost} if lost else {},
        ),
        execution_filter=statements.no_filters(),
        tau=None,
        prompt_source=spec.section(SynthesizeSpec).prompt_source,
    )


def _labels(receipt: PrivacyReceipt | None, *, private: bool, with_candidates: bool) -> dict[str, FigureLabel]:
    """``LABELS``, with the unit of privacy where a label says that it is protected."""
    parts = {part: figure for part, figure in LABELS.items() if with_candidates or part != "candidates"}
    if private or receipt is None:
        return {part: _NOT_PROTECTED if figure.label == "dp" else figure for part, figure in parts.items()}
    unit = f"The unit of privacy is {receipt.unit}."
    return {
        part: figure.model_copy(update={"reason": f"{figure.reason} {unit}"}) if figure.label == "dp" else figure
        for part, figure in parts.items()
    }


def _funnel(
    candidates: Sequence[Candidate], executed: Sequence[ExecutedCandidate], scored: Sequence[ScoredCandidate]
) -> Funnel:
    passed = [candidate.id for candidate in executed if candidate.outcome is Outcome.PASSED]
    if Counter(candidate.id for candidate in executed) != Counter(candidate.id for candidate in candidates):
        raise _inconsistent("the executed candidates are not those that were synthesized")
    if Counter(candidate.id for candidate in scored) != Counter(passed):
        raise _inconsistent("the scored candidates are not those that ran")
    lost = Counter(candidate.outcome.value for candidate in executed if candidate.outcome is not Outcome.PASSED)
    lost.update(candidate.reason for candidate in scored if candidate.reason != "kept")
    return Funnel(
        candidates=len(candidates),
        ran=len(passed),
        described=sum(candidate.reason != "no_description" for candidate in scored),
        kept=sum(candidate.kept for candidate in scored),
        lost=dict(lost.most_common()),
    )


def _comparison(evaluation: Evaluation, benchmark: str) -> Comparison:
    scores = {score.model: score for score in evaluation.scores if score.benchmark == benchmark}
    if set(scores) != {"base", "tuned"}:
        raise _inconsistent(f"the evaluation lacks a model's score on {benchmark}")
    base, tuned = scores["base"], scores["tuned"]
    return Comparison(
        benchmark=benchmark, base=base, tuned=tuned, statement=statements.comparison(base=base, tuned=tuned)
    )


def _inconsistent(message: str) -> StageFailed:
    return StageFailed(message, code="inconsistent_artifacts")

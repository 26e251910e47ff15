"""A finished job, as the report sees it: the figures of a run of the preset ``demo``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from privcode.presets import resolve
from privcode.recipes import Label
from privcode.results import (
    BenchmarkScore,
    CanaryAudit,
    CanaryFinding,
    Candidate,
    Evaluation,
    ExecutedCandidate,
    Outcome,
    PrivacyPlan,
    PrivacyReceipt,
    SamplerEvidence,
    ScoredCandidate,
    wilson,
)
from privcode.specs import JobSpec, PrivacySpec
from services.evaluator.core.history import History
from services.evaluator.core.report import Report, build_report

SECRET = "s3cr3t_marker"
STAGES = {
    "sanitize": 96.4, "merge_junior": 4.2, "synthesize": 57.9, "execute": 3.6, "round_trip": 79.1, "boost": 61.3,
    "merge_premium": 3.9, "evaluate": 104.8, "audit": 22.7,
}  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """The inputs of ``build_report``; ``report`` takes others in the place of some."""

    inputs: dict[str, Any]

    def report(self, **others: Any) -> Report:
        return build_report(**(self.inputs | others))


def job_spec(**privacy: Any) -> JobSpec:
    return resolve({"preset": "demo", "dataset": "ds_1", "prompts": "ds_2", "privacy": privacy})


def receipt(spec: JobSpec, **others: Any) -> PrivacyReceipt:
    plan = PrivacyPlan(
        target_epsilon=spec.section(PrivacySpec).target_epsilon,
        target_delta=spec.section(PrivacySpec).target_delta,
        records=597,
        expected_batch=16,
        sample_rate=16 / 597,
        steps=4,
        noise_multiplier=0.6732,
        max_grad_norm=1.0,
        clipping="flat",
        unit="record",
        units=597,
        max_records_per_unit=1,
    )
    values: dict[str, Any] = {
        "plan": plan,
        "steps_taken": 4,
        "epsilon_spent": spec.section(PrivacySpec).target_epsilon - 3e-5,
        "epsilon_rdp": spec.section(PrivacySpec).target_epsilon * 1.23,
        "unit": "one record",
        "canaries": 5,
        "sampling_seed": "secret",
        "sampler": SamplerEvidence(
            test_lots=1000, units=597, sample_rate=16 / 597, mean_lot=16.1, expected_mean_lot=16.0,
            lot_variance=15.2, expected_lot_variance=16 * (1 - 16 / 597), p_value=0.61,
        ),
        "trainable_parameters": 46080,
        "signal_to_noise": 16 / (0.6732 * 46080**0.5),
    }  # fmt: skip
    return PrivacyReceipt(**(values | others))


def candidates(outcomes: dict[Outcome, int], scores: list[float | None]) -> dict[str, Any]:
    """32 candidates: ``outcomes`` those that did not run, ``scores`` the F1 of those that did."""
    ends = [outcome for outcome, count in outcomes.items() for _ in range(count)] + [Outcome.PASSED] * len(scores)
    made = [
        Candidate(
            id=f"c{number:06}", prompt_index=number, problem=f"problem {SECRET}", completion=f"text {SECRET}",
            finish_reason="stop",
        )
        for number in range(len(ends))
    ]  # fmt: skip
    executed = [
        ExecutedCandidate(
            id=candidate.id, problem=candidate.problem, language="python", code=f"code {SECRET}", outcome=end,
            duration_s=0.04 if end is not Outcome.NO_CODE else None,
        )
        for candidate, end in zip(made, ends, strict=True)
    ]  # fmt: skip
    ran = [candidate for candidate in executed if candidate.outcome is Outcome.PASSED]
    scored = [
        ScoredCandidate(
            id=candidate.id, problem=candidate.problem, code=candidate.code, f1=f1, kept=f1 is not None and f1 >= 0.5,
            description=None if f1 is None else f"description {SECRET}",
            reason="no_description" if f1 is None else "kept" if f1 >= 0.5 else "below_tau",
        )
        for candidate, f1 in zip(ran, scores, strict=True)
    ]  # fmt: skip
    return {"candidates": made, "executed": executed, "scored": scored}


def evaluation(*, base: int, tuned: int, n: int = 20, excluded: int = 0) -> Evaluation:
    return Evaluation(
        scores=[
            BenchmarkScore(
                benchmark="humaneval",
                model=model,
                pass_at_1=wilson(successes=passed, n=n, excluded=excluded),
                outcomes={"failed": n - passed, "passed": passed},
            )
            for model, passed in (("base", base), ("tuned", tuned))
        ]
    )


def canary_audit(*leaked: str) -> CanaryAudit:
    kinds = ("e-mail", "name", "IP address", "password", "user name")
    findings = [CanaryFinding(kind=kind, leaked_by=["junior"] if kind in leaked else []) for kind in kinds]
    return CanaryAudit(
        injected=True,
        canary_rate=1,
        prompts=16,
        samples_per_prompt=2,
        findings=findings,
        leakage=wilson(successes=len(leaked), n=5),
    )


def history(**others: Any) -> History:
    values: dict[str, Any] = {
        "job": {"id": "job_01k7c9x2q4", "created_at": 1763852400, "recipe": "privcode", "preset": "demo"},
        "dataset": {"id": "ds_1", "name": "payments-core", "records": 592},
        "prompts": {"id": "ds_2", "name": "public-prompts"},
        "warm_up": None,
        "stages": [{"name": name, "seconds": seconds, "metrics": {}} for name, seconds in STAGES.items()],
        "budget": {"epsilon": 10.0, "delta": 1e-5, "epsilon_spent": 2.1, "epsilon_left": 3.6},
    }
    return History.model_validate(values | others)


def finished_job() -> Finished:
    spec = job_spec(target_epsilon=3.1415)
    lost = {Outcome.NO_CODE: 8, Outcome.FAILED: 4, Outcome.TIMED_OUT: 1}
    return Finished(
        {
            "spec": spec,
            "label": Label.DP,
            "synthetic": None,
            "history": history(),
            "receipt": receipt(spec),
            "evaluation": evaluation(base=2, tuned=3),
            "audit": canary_audit(),
            **candidates(lost, [None, 0.31, 0.42, 0.48, 0.49, *[0.6] * 14]),
        }
    )

"""The report of a job: what was guaranteed, what came out, how good it is, and how far to believe each figure.

Holds counts, rates and settings only. Training losses, batch sizes and clipping statistics are computed from private
data without differential privacy and are no input here; problems and code are read to be counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from privcode.errors import StageFailed
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
)
from privcode.specs import JobSpec
from services.evaluator.core import statements
from services.evaluator.core.history import Budget, DatasetInfo, History, JobInfo, PromptsInfo
from services.evaluator.core.notices import Notice, notices


class Guarantee(Result):
    """``target_epsilon`` and ``target_delta`` as the request gave them; the receipt as the sanitize stage wrote it."""

    target_epsilon: float
    target_delta: float
    receipt: PrivacyReceipt
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
    """``execution_filter``: what the filter does and does not show. ``tau``: the least BERTScore F1 that was kept."""

    funnel: Funnel
    execution_filter: str
    tau: float
    prompt_source: Literal["public"]


class StageTime(Result):
    """Whole seconds of wall-clock time."""

    name: str
    seconds: int


class FigureLabel(Result):
    """Where a part of the report comes from. ``public``: no private record is in it. ``dp``: computed from what an
    accounted mechanism put out. ``operational``: of the service, not covered by the guarantee."""

    label: Literal["public", "dp", "operational"]
    reason: str


class Report(Result):
    """``report_json.json``. ``labels`` has an entry for each part that holds figures."""

    schema_version: Literal[1] = 1
    job: JobInfo
    dataset: DatasetInfo
    prompts: PromptsInfo
    models: dict[str, str]
    guarantee: Guarantee
    candidates: Candidates
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


def build_report(
    *,
    spec: JobSpec,
    history: History,
    receipt: PrivacyReceipt,
    candidates: Sequence[Candidate],
    executed: Sequence[ExecutedCandidate],
    scored: Sequence[ScoredCandidate],
    evaluation: Evaluation,
    audit: CanaryAudit,
) -> Report:
    """Put together what the stages found.

    Raises :class:`StageFailed` (``inconsistent_artifacts``) if the artifacts don't belong together: a receipt for
    another target, candidates that were not executed, or passed ones that were not scored.
    """
    targets = (spec.privacy.target_epsilon, spec.privacy.target_delta)
    if (receipt.plan.target_epsilon, receipt.plan.target_delta) != targets:
        raise _inconsistent("the privacy receipt is for another target than the job's spec")
    return Report(
        job=history.job,
        dataset=history.dataset,
        prompts=history.prompts,
        models=spec.models,
        guarantee=Guarantee(
            target_epsilon=spec.privacy.target_epsilon,
            target_delta=spec.privacy.target_delta,
            receipt=receipt,
            statement=statements.guarantee(receipt),
        ),
        candidates=Candidates(
            funnel=_funnel(candidates, executed, scored),
            execution_filter=statements.execution_filter(time_limit_s=spec.execute.time_limit_s),
            tau=spec.round_trip.tau,
            prompt_source=spec.synthesize.prompt_source,
        ),
        quality=[_comparison(evaluation, benchmark) for benchmark in spec.evaluate.benchmarks],
        audit=Leakage(result=audit, statement=statements.canaries(audit)),
        stages=[StageTime(name=stage.name, seconds=round(stage.seconds)) for stage in history.stages],
        budget=history.budget,
        warnings=notices(spec=spec, history=history, receipt=receipt, evaluation=evaluation, audit=audit),
        labels=_labels(receipt),
    )


def _labels(receipt: PrivacyReceipt) -> dict[str, FigureLabel]:
    """``LABELS``, with the unit of privacy where a label says that it is protected."""
    return {
        part: label.model_copy(update={"reason": f"{label.reason} The unit of privacy is {receipt.unit}."})
        if label.label == "dp"
        else label
        for part, label in LABELS.items()
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

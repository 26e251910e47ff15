"""What a reader must know before relying on a report's figures, each derived from the figures of the run."""

from __future__ import annotations

from privcode.results import CanaryAudit, Evaluation, PrivacyReceipt, Result
from privcode.specs import JobSpec
from services.evaluator.core import statements
from services.evaluator.core.history import History


class Notice(Result):
    """``code`` is stable, for programs; ``text`` is for people."""

    code: str
    text: str


def notices(
    *, spec: JobSpec, history: History, receipt: PrivacyReceipt | None, evaluation: Evaluation, audit: CanaryAudit
) -> list[Notice]:
    """The warnings of a run, the weightiest first."""
    return [
        *_leakage(audit),
        *([] if receipt is None else _privacy(receipt)),
        *_utility(spec, receipt, evaluation),
        *_assumptions(spec, history, receipt),
    ]


def _leakage(audit: CanaryAudit) -> list[Notice]:
    if not audit.injected:
        return [Notice(code="no_canaries", text=statements.NO_CANARIES)]
    if audit.leakage.successes:
        text = f"Planted canaries leaked: {statements.rate(audit.leakage)}. Don't release before this is understood."
        return [Notice(code="canaries_leaked", text=text)]
    return []


def _privacy(receipt: PrivacyReceipt) -> list[Notice]:
    plan, found = receipt.plan, []
    if receipt.epsilon_spent > plan.target_epsilon:
        found.append(
            Notice(
                code="target_exceeded",
                text=f"The run spent epsilon {statements.round_up(receipt.epsilon_spent)}, more than the target of "
                f"{statements.exact(plan.target_epsilon)}: it took {receipt.steps_taken} noised steps where "
                f"{plan.steps} were planned, those of interrupted attempts included.",
            )
        )
    own = plan.units - receipt.canaries
    if plan.target_delta >= 1 / own:
        found.append(
            Notice(
                code="delta_too_large",
                text=f"Delta {statements.exact(plan.target_delta)} is not below 1 in {own:,} "
                f"{'records' if plan.unit == 'record' else 'units'}: it allows a mechanism that publishes a whole one "
                "now and then. Take a smaller one.",
            )
        )
    if receipt.sampling_seed == "given":
        found.append(
            Notice(
                code="sampling_seed_given",
                text="The seed of the sampling was given in the request. The stated epsilon holds only against "
                "those who don't know it.",
            )
        )
    return found


def _utility(spec: JobSpec, receipt: PrivacyReceipt | None, evaluation: Evaluation) -> list[Notice]:
    found = []
    noise = None if receipt is None else statements.signal_to_noise(receipt)
    if noise is not None:
        found.append(Notice(code="noise_outweighs_signal", text=noise))
    excluded = sum(score.pass_at_1.excluded for score in evaluation.scores)
    if excluded:
        found.append(
            Notice(
                code="tasks_excluded",
                text=f"The sandbox could not run {excluded} benchmark programs. They are left out of the shares.",
            )
        )
    if spec.evaluate.limit is not None:
        found.append(
            Notice(
                code="benchmark_limited",
                text=f"Only the first {spec.evaluate.limit} tasks of each benchmark were asked. The scores compare the "
                "two models here and can't be compared with published ones.",
            )
        )
    return found


def _assumptions(spec: JobSpec, history: History, receipt: PrivacyReceipt | None) -> list[Notice]:
    found = []
    if history.prompts is not None:
        found.append(
            Notice(
                code="prompts_asserted_public",
                text=f"The prompts ({history.prompts.name}) were declared public by whoever uploaded them. Nothing "
                "here protects them.",
            )
        )
    if history.warm_up is not None:
        found.append(
            Notice(
                code="warm_up_asserted_public",
                text=f"Before any budget was spent, {spec.models['sanitize.model']} was fine-tuned without privacy on "
                f"{history.warm_up.name}, which was declared public by whoever uploaded it. Nothing here protects it, "
                "and a part of what the model learned may come from it.",
            )
        )
    if spec.rows_of_job is not None:
        found.append(
            Notice(
                code="rows_limited",
                text="Trained only on those rows of the data set whose problems came through the filters of job "
                f"{spec.rows_of_job}. How many those are is not protected.",
            )
        )
    if receipt is not None and receipt.canaries:
        found.append(
            Notice(
                code="canaries_planted",
                text=f"{receipt.canaries} of the {receipt.plan.records:,} training records are invented canaries.",
            )
        )
    return found

"""The end of a job, from its report, for a terminal of 80 columns. Figures and statements are the report's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from privcode.cli.stage_board import duration
from privcode.cli.views import facts, left, number, spent
from privcode.errors import PrivCodeError
from privcode.results import BenchmarkScore, CanaryAudit, Funnel, JsonObject, PrivacyReceipt, Rate

_BAR: Final = 28
_INTERVAL: Final = 24
_OUTCOMES: Final = {
    "no_code": "no closed code block",
    "failed": "ended with an error",
    "timed_out": "ran too long",
    "out_of_memory": "took too much memory",
    "output_limit": "wrote too much",
    "unsupported_language": "in a language that we can't run yet",
    "no_description": "no usable description",
    "below_tau": "description too far from the prompt",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Guarantee(_Part):
    covers: Literal["released", "last_training", "nothing"]
    receipt: PrivacyReceipt | None
    statement: str


class _Candidates(_Part):
    funnel: Funnel
    execution_filter: str
    tau: float | None


class _Comparison(_Part):
    benchmark: str
    base: BenchmarkScore
    tuned: BenchmarkScore
    statement: str


class _Audit(_Part):
    result: CanaryAudit
    statement: str


class _Job(_Part):
    recipe: str


class _Public(_Part):
    name: str


class _StageTime(_Part):
    name: str
    seconds: float


class _Budget(_Part):
    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_left: float


class _Notice(_Part):
    code: str
    text: str


class Report(_Part):
    """The parts of ``report.json`` that are shown here."""

    job: _Job
    recipe: str
    rows_of_job: str | None
    warm_up: _Public | None
    guarantee: _Guarantee
    candidates: _Candidates | None
    quality: Sequence[_Comparison]
    audit: _Audit
    stages: Sequence[_StageTime]
    budget: _Budget
    warnings: Sequence[_Notice]


def read_report(report: JsonObject) -> Report:
    """Raises :class:`PrivCodeError` (``unknown_report``) for a report of a version that this command does not know."""
    try:
        return Report.model_validate(report)
    except ValidationError:
        raise PrivCodeError(
            "the report has a form that this privcode does not know; the HTML report is complete, or update privcode",
            code="unknown_report",
        ) from None


def report_view(report: Report) -> RenderableType:
    return Group(
        *_privacy(report),
        *(() if report.candidates is None else _funnel(report.candidates)),
        *(part for comparison in report.quality for part in _quality(comparison)),
        *_leakage(report.audit),
        *_times(report.stages),
        *_meaning(report),
    )


def _heading(title: str) -> tuple[RenderableType, ...]:
    return Text(), Rule(Text(title, style="bold"), align="left", style="dim")


def _prose(text: str) -> Padding:
    return Padding(Text(text, style="dim"), (0, 2, 0, 2))


def _privacy(report: Report) -> tuple[RenderableType, ...]:
    guarantee, budget = report.guarantee, report.budget
    # What is not protected is said first.
    covered = guarantee.covers == "released"
    rows: list[tuple[str, RenderableType]] = [("recipe", f"{report.job.recipe}: {report.recipe}")]
    if report.warm_up is not None:
        rows.append(("warm-up", f"on the public data {report.warm_up.name}"))
    if report.rows_of_job is not None:
        rows.append(("rows", f"those that passed the filters of {report.rows_of_job}"))
    receipt = guarantee.receipt
    if receipt is None:
        rows.append(("spent by this job", Text("nothing: there is no privacy mechanism", style="bold red")))
    else:
        cost = f"epsilon {spent(receipt.epsilon_spent)} at delta {number(receipt.plan.target_delta)}"
        how = f"{receipt.steps_taken} noised steps, noise multiplier {receipt.plan.noise_multiplier:.4g}"
        rows += [("spent by this job", Text(cost, style="bold")), ("unit", receipt.unit), ("how", how)]
    rows.append(
        (
            "budget of the data",
            f"epsilon {spent(budget.epsilon_spent)} of {number(budget.epsilon)} spent, "
            f"{left(budget.epsilon_left)} left (delta {number(budget.delta)})",
        )
    )
    alert = () if covered else (Padding(Text(guarantee.statement, style="bold red"), (0, 2, 1, 2)),)
    return (*_heading("Privacy"), *alert, facts(rows), *((_prose(guarantee.statement),) if covered else ()))


def _funnel(candidates: _Candidates) -> tuple[RenderableType, ...]:
    funnel = candidates.funnel
    table = Table.grid(padding=(0, 2))
    table.add_column(width=18, style="dim")
    table.add_column(width=5, justify="right")
    table.add_column()
    steps = [("candidates", funnel.candidates), ("ran", funnel.ran), ("described", funnel.described),
             ("kept", funnel.kept)]  # fmt: skip
    for name, count in steps:
        if count is not None:
            table.add_row(name, f"{count:,}", _bar(count, of=funnel.candidates))
    lost = [f"{count:,} {_OUTCOMES.get(reason, reason)}" for reason, count in funnel.lost.items()]
    return (
        *_heading("Synthetic code"),
        Padding(table, (0, 0, 0, 2)),
        facts([("lost", "\n".join(lost) or "none")]),
    )


def _bar(part: float, *, of: float) -> Text:
    return Text("━" * (round(_BAR * part / of) if of else 0), style="cyan")


def _quality(comparison: _Comparison) -> tuple[RenderableType, ...]:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=18, style="dim")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for score in (comparison.base, comparison.tuned):
        table.add_row(f"{score.model} model", rate_text(score.pass_at_1), _interval(score.pass_at_1))
        if excluded := score.pass_at_1.excluded:
            table.add_row("", f"and {excluded} that could not be run")
    return (
        *_heading(f"pass@1 on {comparison.benchmark}, with 95 % intervals"),
        Padding(table, (0, 0, 0, 2)),
        _prose(comparison.statement),
    )


def rate_text(rate: Rate) -> str:
    """``3 of 20 = 15% (5% to 36%)``: the share with its denominator and interval."""
    if rate.value is None:
        return "unknown"
    return f"{rate.successes} of {rate.n} = {rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%})"


def _interval(rate: Rate) -> Text:
    if rate.value is None:
        return Text()
    low, value, high = (round((_INTERVAL - 1) * share) for share in (rate.low, rate.value, rate.high))
    cells = ["·"] * _INTERVAL
    cells[low : high + 1] = "─" * (high + 1 - low)
    cells[low], cells[high] = "├", "┤"
    cells[value] = "●"
    return Text("".join(cells), style="cyan")


def _leakage(audit: _Audit) -> tuple[RenderableType, ...]:
    leakage = audit.result.leakage
    if audit.result.injected:
        found = f"{leakage.successes} of {leakage.n} planted secrets found; upper limit "
        value = Text(f"{found}{100 * leakage.high:.1f} %", style="bold red" if leakage.successes else "")
    else:
        value = Text("no secrets were planted")
    return *_heading("Leakage"), facts([("canaries", value)]), _prose(audit.statement)


def _times(stages: Sequence[_StageTime]) -> tuple[RenderableType, ...]:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=18, style="dim")
    table.add_column(width=5, justify="right")
    table.add_column()
    longest = max((stage.seconds for stage in stages), default=0.0)
    for stage in stages:
        table.add_row(stage.name, duration(stage.seconds), _bar(stage.seconds, of=longest))
    return *_heading("Time"), Padding(table, (0, 0, 0, 2))


def _meaning(report: Report) -> tuple[RenderableType, ...]:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1, style="yellow")
    table.add_column(overflow="fold")
    filters = [] if report.candidates is None else [report.candidates.execution_filter]
    for text in [*(notice.text for notice in report.warnings), *filters]:
        table.add_row("•", text)
    return *_heading("What this shows, and what it does not"), Padding(table, (0, 2, 0, 2))

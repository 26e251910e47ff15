"""Jobs, estimates and budgets as text for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from privcode.cli.stage_board import duration
from privcode.client_objects import Budget, Dataset, Estimate, Job, Plan, Stage
from privcode.units import unit_words

_STATE_STYLE: Final = {
    "succeeded": "green", "failed": "bold red", "cancelled": "yellow", "cancelling": "yellow", "running": "cyan",
}  # fmt: skip


def facts(rows: Iterable[tuple[str, RenderableType]]) -> Padding:
    """Two columns: what it is, and its value."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=18, style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    return Padding(table, (0, 0, 0, 2))


def warnings_view(warnings: Sequence[str]) -> Padding:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(overflow="fold")
    for warning in warnings:
        table.add_row(Text("!", style="bold yellow"), Text(warning, style="yellow"))
    return Padding(table, (0, 0, 0, 2))


def number(value: float) -> str:
    """A figure that was given, as short as it can be: ``4``, ``3.1415``, ``1e-5``."""
    return f"{value:.10g}".replace("e-0", "e-")


def spent(epsilon: float) -> str:
    """Rounded up: what is spent is never shown smaller than it is. Noise of the last bits is not rounded up."""
    return f"{math.ceil(epsilon * 1e4 - 1e-6) / 1e4:.4f}"


def left(epsilon: float) -> str:
    """Rounded down: what is left is never shown larger than it is."""
    return f"{math.floor(epsilon * 1e4 + 1e-6) / 1e4:.4f}"


def budget_text(budget: Budget) -> str:
    committed, remaining = spent(budget["epsilon_committed"]), left(budget["epsilon_left"])
    return (
        f"epsilon {committed} of {number(budget['epsilon'])} committed, {remaining} left "
        f"(delta {number(budget['delta'])})"
    )


def guarantee_text(plan: Plan | None) -> str:
    if plan is None:
        return "NONE: this recipe has no privacy mechanism"
    return f"epsilon {number(plan['target_epsilon'])} at delta {number(plan['target_delta'])}"


def dataset_view(dataset: Dataset) -> RenderableType:
    skipped = ", ".join(
        f"{count:,} {reason.replace('_', ' ')}"
        for reason, count in sorted(dataset["summary"]["skipped"].items(), key=lambda item: -item[1])
        if count
    )
    rows: list[tuple[str, RenderableType]] = [
        ("dataset", dataset["id"]),
        ("rows", f"{dataset['rows']:,} {dataset['kind']}, {dataset['visibility']}"),
        ("left out", f"{dataset['summary']['duplicates_removed']:,} duplicates" + (f"; {skipped}" if skipped else "")),
    ]
    if dataset["budget"] is not None:
        rows.append(
            ("units", "each record is one" if dataset["units"] is None else f"{dataset['units']:,}, by unit_id")
        )
        rows.append(("budget", budget_text(dataset["budget"])))
    return facts(rows)


def estimate_view(estimate: Estimate) -> RenderableType:
    plan = estimate["plan"]
    trained = f"{estimate['trainable_parameters']:,} parameters"
    if plan is None or estimate["epsilon_rdp"] is None or estimate["signal_to_noise"] is None:
        without: list[tuple[str, RenderableType]] = [
            ("guarantee", Text(guarantee_text(None), style="bold red")),
            ("trained", trained),
            ("budget now", budget_text(estimate["budget"])),
        ]
        return Group(facts(without), warnings_view(estimate["warnings"]))
    fits = Text("fits the budget", style="green") if estimate["fits"] else Text("exceeds the budget", style="bold red")
    rows: list[tuple[str, RenderableType]] = [
        ("guarantee", guarantee_text(plan)),
        ("unit", unit_words(unit=plan["unit"], max_records_per_unit=plan["max_records_per_unit"])),
        (
            "noise multiplier",
            f"{plan['noise_multiplier']:.4g} (PLD accountant; by RDP epsilon {estimate['epsilon_rdp']:.2f})",
        ),
        (
            "sampling",
            f"{plan['steps']} steps, each unit with probability {plan['sample_rate']:.3g} "
            f"(expected {plan['expected_batch']} of {plan['units']:,})",
        ),
        (
            "trained",
            f"{trained}, clipped at {number(plan['max_grad_norm'])} per unit",
        ),
        ("signal to noise", f"{estimate['signal_to_noise']:.2g}: {signal_words(estimate['signal_to_noise'])}"),
        ("budget after" if estimate["fits"] else "budget now", budget_text(estimate["budget"])),
        ("", fits),
    ]
    return Group(facts(rows), warnings_view(estimate["warnings"]))


def signal_words(ratio: float) -> str:
    """What expected_batch / (noise_multiplier * sqrt(trainable parameters)) means."""
    if ratio >= 1:
        return "at best the signal outweighs the noise"
    if ratio > 0.5:
        return "the noise of a step outweighs its signal"
    return f"the noise of a step is at least {1 / ratio:.0f} times its signal"


def jobs_view(jobs: Iterable[Job]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for heading in ("job", "recipe", "state", "stages", "epsilon", "submitted"):
        table.add_column(heading, no_wrap=True)
    for job in jobs:
        done = sum(stage["state"] == "succeeded" for stage in job["stages"])
        table.add_row(
            job['id'], job['recipe'], state_text(job['state']), f"{done}/{len(job['stages'])}",
            number(job['plan']['target_epsilon']) if job['plan'] else "none", clock(job['created_at']),
        )  # fmt: skip
    return table


def job_view(job: Job) -> RenderableType:
    rows: list[tuple[str, RenderableType]] = [
        ("job", job["id"]),
        ("state", state_text(job["state"])),
        ("recipe", job["recipe"] + (f", preset {job['preset']}" if job["preset"] else "")),
        ("dataset", job["dataset"]),
        ("prompts", job["prompts"] or "none"),
        ("guarantee", guarantee_text(job["plan"])),
        ("submitted", clock(job["created_at"])),
    ]
    if job["error"] is not None:
        rows.append(("error", Text(f"{job['error']['code']}: {job['error']['message']}", style="red")))
    stages = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("stage", "state", "attempt", "time", "progress"):
        stages.add_column(heading, no_wrap=True, overflow="ellipsis")
    for stage in job["stages"]:
        stages.add_row(*_stage_cells(stage))
    return Group(facts(rows), Text(), Padding(stages, (0, 0, 0, 2)), warnings_view(job["warnings"]))


def _stage_cells(stage: Stage) -> tuple[RenderableType, ...]:
    started, ended, progress = stage["started_at"], stage["ended_at"], stage["progress"]
    reached = f"{progress['done']}/{progress['total']} {progress['note'] or ''}" if progress else ""
    return (
        stage["name"],
        state_text(stage["state"]),
        str(stage["attempt"] or ""),
        duration(ended - started) if started and ended else "",
        reached or stage["error_code"] or "",
    )


def state_text(state: str) -> Text:
    return Text(state, style=_STATE_STYLE.get(state, ""))


def clock(unix: float) -> str:
    return datetime.fromtimestamp(unix).astimezone().strftime("%m-%d %H:%M")

"""A job's stages as its events arrive: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from privcode.client import Client
from privcode.client_objects import Event, Job

_PURPOSE: Final = {
    "warm_up": "learns public pairs, without DP",
    "merge_warm_up": "adapter folded into its base",
    "mask": "personal data masked, no guarantee",
    "tune_masked": "learns masked code, NO privacy",
    "merge_masked": "adapter folded into its base",
    "sanitize": "learns private code under DP",
    "finetune": "learns private code, NO privacy",
    "merge_junior": "adapter folded into the junior",
    "synthesize": "junior answers public prompts",
    "execute": "answers run in the sandbox",
    "round_trip": "code described, compared to prompt",
    "collect": "each answer with code is kept",
    "boost": "premium model learns what was kept",
    "merge_premium": "adapter folded into the premium",
    "evaluate": "base and tuned model, same tasks",
    "audit": "looks for the planted secrets",
    "report": "what was spent, what came out",
}
_STYLE: Final = {
    "pending": "dim", "skipped": "dim", "cancelled": "yellow", "failed": "bold red", "queued": "", "running": "",
    "succeeded": "",
}  # fmt: skip
_GLYPH: Final = {"pending": "·", "queued": "○", "succeeded": "✓", "failed": "✗", "cancelled": "–", "skipped": "–"}
_GLYPH_STYLE: Final = {"succeeded": "green", "failed": "bold red", "cancelled": "yellow"}
_PLAIN_SECONDS: Final = 15.0


@dataclass
class _Row:
    name: str
    state: str = "pending"
    done: int = 0
    total: int = 0
    note: str = ""
    started_at: float | None = None
    ended_at: float | None = None

    def seconds(self, now: float) -> float | None:
        if self.started_at is None:
            return None
        return max(0.0, (self.ended_at or now) - self.started_at)


class StageBoard:
    """The stages of one job, brought up to date by :meth:`update`. Renders itself with rich, 80 columns wide."""

    def __init__(self, names: Sequence[str], *, clock: Callable[[], float] = time.time) -> None:
        self._rows = {name: _Row(name=name) for name in names}
        self._clock = clock
        self._spinner = Spinner("dots", style="cyan")

    def update(self, event: Event) -> None:
        kind, _, what = event["type"].partition(".")
        row = self._rows.get(str(event["data"].get("stage", "")))
        if kind != "stage" or row is None:
            return
        if what == "progress":
            row.done, row.total = int(event["data"].get("done", 0)), int(event["data"].get("total", 0))
            row.note = str(event["data"].get("note") or "")
            return
        row.state = what
        if what == "running":
            row.started_at, row.ended_at, row.done, row.total, row.note = event["created_at"], None, 0, 0, ""
        elif what != "queued":
            row.ended_at = event["created_at"]
        if what == "failed":
            row.note = str(event["data"].get("code", ""))

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(width=13, no_wrap=True)
        table.add_column(width=14)
        table.add_column(width=7, justify="right", no_wrap=True)
        table.add_column(width=5, justify="right", no_wrap=True)
        table.add_column(width=35, no_wrap=True, overflow="ellipsis")
        for row in self._rows.values():
            table.add_row(*self._cells(row), style=_STYLE.get(row.state, ""))
        return table

    def _cells(self, row: _Row) -> tuple[RenderableType, ...]:
        running = row.state == "running"
        glyph = self._spinner if running else Text(_GLYPH.get(row.state, "·"), style=_GLYPH_STYLE.get(row.state, ""))
        finished = row.state == "succeeded"
        bar = ProgressBar(
            total=None if running and not row.total else max(row.total, 1),
            completed=max(row.total, 1) if finished else row.done,
            width=14,
            complete_style="cyan",
            pulse_style="cyan",
            finished_style="green" if finished else "cyan",
        )
        seconds = row.seconds(self._clock())
        return (
            glyph,
            row.name,
            bar if running or finished or row.state == "failed" else "",
            f"{row.done}/{row.total}" if row.total else "",
            "" if seconds is None else duration(seconds),
            Text((row.note if running or row.state == "failed" else "") or _PURPOSE.get(row.name, ""), style="dim"),
        )

    def line(self, event: Event) -> str | None:
        """The event as one plain line; None where it is not worth one."""
        kind, _, what = event["type"].partition(".")
        if kind != "stage" or (name := str(event["data"].get("stage", ""))) not in self._rows:
            return None
        place = f"[{list(self._rows).index(name) + 1:>2}/{len(self._rows)}] {name:<13}"
        row = self._rows[name]
        match what:
            case "running":
                return f"{place} {_PURPOSE.get(name, '')}".rstrip()
            case "progress":
                return f"{place} {row.done}/{row.total} {row.note}".rstrip()
            case "succeeded":
                return f"{place} done in {duration(row.seconds(self._clock()) or 0.0)}"
            case "failed":
                return f"{place} failed: {row.note}"
            case "cancelled":
                return f"{place} cancelled"
        return None


def duration(seconds: float) -> str:
    """``42 s``, ``3:07`` or ``1:03:07``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def follow(client: Client, job: Job, *, console: Console) -> None:
    """Show a job's stages until it has ended. ``KeyboardInterrupt`` leaves the job alone."""
    board = StageBoard([stage["name"] for stage in job["stages"]])
    if console.is_terminal:
        with Live(board, console=console, refresh_per_second=4):
            for event in client.follow(job["id"]):
                board.update(event)
        return
    last_progress = 0.0
    for event in client.follow(job["id"]):
        board.update(event)
        if event["type"] == "stage.progress":
            if event["created_at"] - last_progress < _PLAIN_SECONDS:
                continue
            last_progress = event["created_at"]
        if (line := board.line(event)) is not None:
            console.out(line, highlight=False)

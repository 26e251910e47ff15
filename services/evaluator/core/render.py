"""A report as one self-contained page: no script, no request to anywhere, plots as inline SVG."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from services.evaluator.core import statements
from services.evaluator.core.report import Report

REASONS: Final = {
    "failed": "ended with an error",
    "timed_out": "did not end in time",
    "out_of_memory": "needed more memory than allowed",
    "output_limit": "printed more than allowed",
    "unsupported_language": "in a language that is not run",
    "no_code": "no complete code block in the answer",
    "sandbox_unavailable": "our sandbox could not run it",
    "no_description": "the describer gave no description of it",
    "below_tau": "its description is too far from the prompt",
}
_SCALES: Final = (0.05, 0.1, 0.2, 0.25, 0.4, 0.5, 0.6, 0.8, 1.0)


def render_html(report: Report) -> str:
    """The page. Every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        exact=statements.exact,
        round_up=statements.round_up,
        percent=statements.percent,
        rate=statements.rate,
        sampler=statements.sampler,
        date=_date,
        duration=_duration,
        words=_words,
    )
    return environment.get_template("report.html").render(
        report=report,
        receipt=report.guarantee.receipt,
        reasons=REASONS,
        scale_of=_scale,
    )


def _scale(highest: float) -> float:
    """The end of an axis from 0 that has room for ``highest``, a share."""
    return next(scale for scale in _SCALES if highest <= scale)


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%-d %B %Y, %H:%M UTC")


def _duration(seconds: int) -> str:
    if seconds < 1:
        return "< 1 s"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _words(name: str) -> str:
    return name.replace("_", " ")

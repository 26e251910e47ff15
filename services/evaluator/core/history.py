"""What the worker tells the report of the job besides its artifacts. Every field is required: a report with a gap where
its budget should be is not worth signing."""

from __future__ import annotations

from collections.abc import Sequence

from privcode.results import Result


class JobInfo(Result):
    """``created_at``: Unix time in seconds. ``preset`` is None where the request named none."""

    id: str
    created_at: int
    recipe: str
    preset: str | None


class DatasetInfo(Result):
    """``records``: rows of the data set, without planted canaries."""

    id: str
    name: str
    records: int


class PublicData(Result):
    """A public data set: prompts, or the pairs of a warm-up."""

    id: str
    name: str


class StageInfo(Result):
    """A stage that has ended; ``seconds`` of wall-clock time."""

    name: str
    seconds: float
    metrics: dict[str, float | int | str | None]


class Budget(Result):
    """The data set's budget. ``epsilon_spent`` is for the mechanisms that have ended, this job's included; what
    is in neither it nor ``epsilon_left`` is reserved by running jobs."""

    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_left: float


class History(Result):
    """``prompts`` and ``warm_up`` are None in a job that has none."""

    job: JobInfo
    dataset: DatasetInfo
    prompts: PublicData | None
    warm_up: PublicData | None
    stages: Sequence[StageInfo]
    budget: Budget

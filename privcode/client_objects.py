"""What the HTTP API answers, as the client sees it. Unknown fields are ignored: a newer server may send more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from privcode.results import JsonObject, PrivacyPlan
from privcode.states import JobState, StageState

Item = TypeVar("Item")

TERMINAL_EVENTS = frozenset(f"job.{state}" for state in JobState if state.ended)


class ApiObject(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Listing(ApiObject, Generic[Item]):
    """One page; ``has_more`` tells that there are objects after the last of ``data``."""

    data: Sequence[Item]
    has_more: bool


class Budget(ApiObject):
    """Privacy budget of a dataset, at ``delta``. ``epsilon_committed``: spent, and reserved by running jobs."""

    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_committed: float
    epsilon_left: float


class LedgerEntry(ApiObject):
    job: str
    sample_rate: float
    noise_multiplier: float
    steps: int
    target_delta: float
    state: str


class BudgetHistory(Budget):
    """The budget and each mechanism that was reserved on it."""

    dataset: str
    entries: Sequence[LedgerEntry]


class DatasetSummary(ApiObject):
    """What the upload's reading found."""

    rows: int
    duplicates_removed: int
    skipped: Mapping[str, int]
    languages: Mapping[str, int]


class Dataset(ApiObject):
    id: str
    name: str
    visibility: str
    kind: str
    rows: int
    sha256: str
    summary: DatasetSummary
    budget: Budget | None
    created_at: float


class Estimate(ApiObject):
    """What a job would spend. ``budget`` is what it would be after the job, or as it is where ``fits`` is False."""

    plan: PrivacyPlan
    epsilon_rdp: float
    trainable_parameters: int
    signal_to_noise: float
    fits: bool
    budget: Budget
    warnings: Sequence[str]


class Progress(ApiObject):
    done: int
    total: int
    note: str | None = None


class Stage(ApiObject):
    name: str
    queue: str
    state: StageState
    attempt: int
    progress: Progress | None
    metrics: JsonObject | None
    error_code: str | None
    started_at: float | None
    ended_at: float | None


class JobError(ApiObject):
    code: str
    message: str


class Job(ApiObject):
    """Times are unix seconds."""

    id: str
    recipe: str
    preset: str | None
    state: JobState
    dataset: str
    prompts: str
    spec: JsonObject
    plan: PrivacyPlan
    warnings: Sequence[str]
    error: JobError | None
    stages: Sequence[Stage]
    created_at: float
    started_at: float | None
    ended_at: float | None


class Event(ApiObject):
    """``sequence`` numbers a job's events from 1 without a gap."""

    sequence: int
    type: str
    data: JsonObject
    created_at: float

    @property
    def ends_job(self) -> bool:
        return self.type in TERMINAL_EVENTS


class Artifact(ApiObject):
    """``label``: private, dp or public."""

    id: str
    kind: str
    label: str
    sha256: str
    bytes: int
    files: Sequence[str]
    created_at: float

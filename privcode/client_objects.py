"""What the HTTP API answers: JSON objects, typed. Times are unix seconds. A newer server may send more fields."""

from __future__ import annotations

from typing import Generic, TypedDict, TypeVar

from privcode.results import JsonObject

Item = TypeVar("Item")


class Listing(TypedDict, Generic[Item]):
    """One page; ``has_more`` tells that there are objects after the last of ``data``."""

    data: list[Item]
    has_more: bool


class Budget(TypedDict):
    """Privacy budget of a dataset, at ``delta``. ``epsilon_committed``: spent, and reserved by running jobs."""

    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_committed: float
    epsilon_left: float


class LedgerEntry(TypedDict):
    job: str
    sample_rate: float
    noise_multiplier: float
    steps: int
    target_delta: float
    state: str


class BudgetHistory(Budget):
    """The budget and each mechanism that was reserved on it."""

    dataset: str
    entries: list[LedgerEntry]


class DatasetSummary(TypedDict):
    """What the upload's reading found: counts by reason and by language."""

    rows: int
    units: int | None
    duplicates_removed: int
    skipped: dict[str, int]
    languages: dict[str, int]


class Dataset(TypedDict):
    """``units``: distinct privacy units, None where each row is one. ``budget`` is None for a public dataset."""

    id: str
    name: str
    visibility: str
    kind: str
    rows: int
    units: int | None
    sha256: str
    summary: DatasetSummary
    budget: Budget | None
    created_at: float


class Plan(TypedDict):
    """:class:`privcode.results.PrivacyPlan`."""

    target_epsilon: float
    target_delta: float
    records: int
    unit: str
    units: int
    max_records_per_unit: int
    expected_batch: int
    sample_rate: float
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    clipping: str


class Estimate(TypedDict):
    """What a job would spend. ``budget`` is what it would be after the job, or as it is where ``fits`` is False.
    Without a privacy mechanism there is no plan, and neither of the figures that follow from it."""

    plan: Plan | None
    epsilon_rdp: float | None
    trainable_parameters: int
    signal_to_noise: float | None
    fits: bool
    budget: Budget
    warnings: list[str]


class Progress(TypedDict):
    done: int
    total: int
    note: str | None


class Stage(TypedDict):
    name: str
    queue: str
    state: str
    attempt: int
    progress: Progress | None
    metrics: JsonObject | None
    error_code: str | None
    started_at: float | None
    ended_at: float | None


class JobError(TypedDict):
    code: str
    message: str


class Job(TypedDict):
    """``plan`` is None where the recipe has no privacy mechanism, ``prompts`` where it has no use for them."""

    id: str
    recipe: str
    preset: str | None
    state: str
    dataset: str
    prompts: str | None
    spec: JsonObject
    plan: Plan | None
    warnings: list[str]
    error: JobError | None
    stages: list[Stage]
    created_at: float
    started_at: float | None
    ended_at: float | None


class Event(TypedDict):
    """``sequence`` numbers a job's events from 1 without a gap."""

    sequence: int
    type: str
    data: JsonObject
    created_at: float


class Artifact(TypedDict):
    """``label``: private, dp or public."""

    id: str
    kind: str
    label: str
    sha256: str
    bytes: int
    files: list[str]
    created_at: float

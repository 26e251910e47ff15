"""Objects as they look over HTTP: ``object``, prefixed ids, unix times, lists as ``{data, has_more}``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from privcode.db.models import Artifact, Dataset, Event, Job, LedgerEntry
from privcode.ledger import Budget
from privcode.models import ModelInfo
from privcode.results import JsonObject, PrivacyPlan

Item = TypeVar("Item")


def _unix(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


class Page(BaseModel):
    """Query of a list: at most ``limit`` objects, those that come after the object ``after``."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = None
    limit: int = Field(default=20, ge=1, le=100)


UsePage = Annotated[Page, Query()]


class UploadQuery(BaseModel):
    """What an upload is. The budget applies to private datasets only, ``unit`` and the character limits to archives."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=200)
    visibility: Literal["private", "public"]
    format: Literal["jsonl", "archive"] = "jsonl"
    kind: Literal["pairs", "prompts"] = "pairs"
    budget_epsilon: float | None = Field(default=None, gt=0)
    budget_delta: float | None = Field(default=None, gt=0, lt=1)
    min_solution_chars: int | None = Field(default=None, ge=1)
    max_solution_chars: int | None = Field(default=None, ge=1)
    max_problem_chars: int | None = Field(default=None, ge=1)
    unit: Literal["record", "file"] | None = None


class ListObject(BaseModel, Generic[Item]):
    object: Literal["list"] = "list"
    data: Sequence[Item]
    has_more: bool


def page_of(rows: Sequence[object], *, limit: int, items: Sequence[Item]) -> ListObject[Item]:
    return ListObject(data=items[:limit], has_more=len(rows) > limit)


class BudgetObject(BaseModel):
    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_committed: float
    epsilon_left: float

    @classmethod
    def of(cls, budget: Budget) -> BudgetObject:
        return cls(
            epsilon=budget.epsilon,
            delta=budget.delta,
            epsilon_spent=budget.epsilon_spent,
            epsilon_committed=budget.epsilon_committed,
            epsilon_left=budget.epsilon_left,
        )


class LedgerEntryObject(BaseModel):
    job: str
    sample_rate: float
    noise_multiplier: float
    steps: int
    target_delta: float
    state: str

    @classmethod
    def of(cls, entry: LedgerEntry) -> LedgerEntryObject:
        return cls(
            job=entry.job_id,
            sample_rate=entry.sample_rate,
            noise_multiplier=entry.noise_multiplier,
            steps=entry.steps,
            target_delta=entry.target_delta,
            state=entry.state,
        )


class BudgetHistoryObject(BudgetObject):
    object: Literal["budget"] = "budget"
    dataset: str
    entries: list[LedgerEntryObject]


class DatasetObject(BaseModel):
    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    visibility: str
    kind: str
    rows: int
    units: int | None
    sha256: str
    summary: JsonObject
    budget: BudgetObject | None
    created_at: float | None

    @classmethod
    def of(cls, dataset: Dataset, budget: Budget | None) -> DatasetObject:
        return cls(
            id=dataset.id,
            name=dataset.name,
            visibility=dataset.visibility,
            kind=dataset.kind,
            rows=dataset.rows,
            units=dataset.units,
            sha256=dataset.sha256,
            summary=dataset.summary,
            budget=None if budget is None else BudgetObject.of(budget),
            created_at=_unix(dataset.created_at),
        )


class StageObject(BaseModel):
    name: str
    queue: str
    state: str
    attempt: int
    progress: JsonObject | None
    metrics: JsonObject | None
    error_code: str | None
    started_at: float | None
    ended_at: float | None


class ErrorObject(BaseModel):
    code: str
    message: str


class JobObject(BaseModel):
    """``plan`` is null where the recipe has no privacy mechanism, ``prompts`` where it has no use for them."""

    object: Literal["job"] = "job"
    id: str
    recipe: str
    preset: str | None
    state: str
    dataset: str
    prompts: str | None
    spec: JsonObject
    plan: PrivacyPlan | None
    warnings: list[str]
    error: ErrorObject | None
    stages: list[StageObject]
    created_at: float | None
    started_at: float | None
    ended_at: float | None

    @classmethod
    def of(cls, job: Job) -> JobObject:
        return cls(
            id=job.id,
            recipe=job.recipe,
            preset=job.preset,
            state=job.state,
            dataset=job.dataset_id,
            prompts=job.prompts_id,
            spec=job.spec,
            plan=None if job.plan is None else PrivacyPlan.model_validate(job.plan),
            warnings=job.warnings,
            error=ErrorObject(code=job.error_code, message=job.error_message or "") if job.error_code else None,
            stages=[
                StageObject(
                    name=stage.name,
                    queue=stage.queue,
                    state=stage.state,
                    attempt=stage.attempt,
                    progress=stage.progress,
                    metrics=stage.metrics,
                    error_code=stage.error_code,
                    started_at=_unix(stage.started_at),
                    ended_at=_unix(stage.ended_at),
                )
                for stage in job.stages
            ],
            created_at=_unix(job.created_at),
            started_at=_unix(job.started_at),
            ended_at=_unix(job.ended_at),
        )


class EstimateObject(BaseModel):
    """``budget`` is what it would be after this job, or as it is now where the job does not fit. Without a privacy
    mechanism ``plan``, ``epsilon_rdp`` and ``signal_to_noise`` are null, and every job fits."""

    object: Literal["estimate"] = "estimate"
    plan: PrivacyPlan | None
    epsilon_rdp: float | None
    trainable_parameters: int
    signal_to_noise: float | None
    fits: bool
    budget: BudgetObject
    warnings: list[str]


class EventObject(BaseModel):
    object: Literal["event"] = "event"
    sequence: int
    type: str
    data: JsonObject
    created_at: float | None

    @classmethod
    def of(cls, event: Event) -> EventObject:
        return cls(sequence=event.sequence, type=event.type, data=event.data, created_at=_unix(event.created_at))


class ArtifactObject(BaseModel):
    object: Literal["artifact"] = "artifact"
    id: str
    kind: str
    label: str
    sha256: str
    bytes: int
    files: list[str]
    inputs: dict[str, Any]
    created_at: float | None

    @classmethod
    def of(cls, artifact: Artifact) -> ArtifactObject:
        return cls(
            id=artifact.id,
            kind=artifact.kind,
            label=artifact.label,
            sha256=artifact.sha256,
            bytes=artifact.bytes,
            files=artifact.files,
            inputs=artifact.inputs,
            created_at=_unix(artifact.created_at),
        )


class ModelObject(ModelInfo):
    object: Literal["model"] = "model"

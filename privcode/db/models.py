"""All persistent state. Functions in ``privcode.jobs``, ``privcode.ledger`` and ``privcode.datasets`` write it."""

from __future__ import annotations

import secrets
from datetime import datetime

from sqlalchemy import BigInteger, DateTime, ForeignKey, Index, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from privcode.results import JsonObject


def new_id(prefix: str) -> str:
    """A prefixed random id, as ``job_3f...``; 96 bits."""
    return f"{prefix}_{secrets.token_hex(12)}"


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True), JsonObject: JSONB}  # noqa: RUF012


class Tenant(Base):
    __tablename__ = "tenant"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class ApiKey(Base):
    """``key_hash`` is argon2; ``prefix`` finds the row."""

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    prefix: Mapped[str] = mapped_column(unique=True)
    key_hash: Mapped[str]
    role: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Dataset(Base):
    """Rows live in the artifact; the budget is the most that all jobs on this dataset may spend together. ``units``:
    distinct values of the column ``unit_id``, None without it."""

    __tablename__ = "dataset"
    __table_args__ = (UniqueConstraint("tenant_id", "sha256", "visibility", "kind"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    name: Mapped[str]
    visibility: Mapped[str]
    kind: Mapped[str]
    rows: Mapped[int]
    units: Mapped[int | None]
    sha256: Mapped[str]
    summary: Mapped[JsonObject]
    budget_epsilon: Mapped[float | None]
    budget_delta: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    artifact: Mapped[Artifact] = relationship()


class Job(Base):
    """``plan`` is None where the recipe has no privacy mechanism, ``prompts_id`` where it synthesizes nothing."""

    __tablename__ = "job"
    __table_args__ = (Index("job_tenant_created", "tenant_id", "created_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    recipe: Mapped[str]
    preset: Mapped[str | None]
    spec: Mapped[JsonObject]
    plan: Mapped[JsonObject | None] = mapped_column(JSONB(none_as_null=True))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"))
    prompts_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id"))
    state: Mapped[str] = mapped_column(index=True)
    warnings: Mapped[list[str]] = mapped_column(JSONB)
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    last_event: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    stages: Mapped[list[Stage]] = relationship(back_populates="job", order_by="Stage.position")
    dataset: Mapped[Dataset] = relationship(foreign_keys=[dataset_id])
    prompts: Mapped[Dataset | None] = relationship(foreign_keys=[prompts_id])


class Stage(Base):
    """``lease_token`` names the attempt that may write; it changes with each lease, so that a worker that lost its
    lease can't. ``woken_at``: when a message was last sent for it."""

    __tablename__ = "stage"
    __table_args__ = (
        UniqueConstraint("job_id", "position"),
        Index("stage_state_lease", "state", "lease_until"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    position: Mapped[int]
    name: Mapped[str]
    queue: Mapped[str]
    state: Mapped[str]
    attempt: Mapped[int] = mapped_column(default=0)
    lease_token: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    woken_at: Mapped[datetime | None]
    progress: Mapped[JsonObject | None]
    metrics: Mapped[JsonObject | None]
    error_code: Mapped[str | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    job: Mapped[Job] = relationship(back_populates="stages")


class Artifact(Base):
    """An immutable folder in the artifact store: a dataset's rows, or an output of a stage. ``inputs``: sha256 of each
    input artifact, by kind."""

    __tablename__ = "artifact"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    kind: Mapped[str]
    label: Mapped[str]
    sha256: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[list[str]] = mapped_column(JSONB)
    inputs: Mapped[JsonObject]
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id"), unique=True)
    stage_id: Mapped[str | None] = mapped_column(ForeignKey("stage.id"), index=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Event(Base):
    __tablename__ = "event"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    data: Mapped[JsonObject]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class LedgerEntry(Base):
    """One accounted mechanism on one dataset. ``steps`` is what counts against the budget: the planned number while
    reserved, the number really taken once spent."""

    __tablename__ = "ledger_entry"

    id: Mapped[str] = mapped_column(primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), unique=True)
    sample_rate: Mapped[float]
    noise_multiplier: Mapped[float]
    steps: Mapped[int]
    target_delta: Mapped[float]
    state: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    settled_at: Mapped[datetime | None]


class IdempotencyKey(Base):
    """The answer that was given to a POST. A retry with the same key and the same request gets it again."""

    __tablename__ = "idempotency_key"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    response: Mapped[JsonObject | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

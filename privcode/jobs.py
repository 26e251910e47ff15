"""The life of a job after submission: lease, progress, finish, fail, cancel. All database writes of a job's life.

Functions take a session and never commit; the route or the worker does, and only then sends what was returned as
:class:`~privcode.queue.Wake`. A stage's writer must show the ``lease_token`` of its attempt: a worker that lost its
lease can't write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from sqlalchemy import func, or_, select, tuple_
from sqlalchemy.orm import Session

from privcode import events, ledger
from privcode.artifacts import StoredArtifact
from privcode.db.models import Artifact, Job, Stage, new_id
from privcode.errors import Conflict, NotFound
from privcode.queue import Wake
from privcode.recipes import Label, StageDef, stage_def
from privcode.results import JsonObject
from privcode.specs import JobSpec
from privcode.states import JobState, StageState, require_transition


class LeaseLost(Conflict):
    """This attempt no longer owns its stage; whatever it did must not be written."""

    code = "lease_lost"


class Directive(Enum):
    """What a running attempt is to do, told at each heartbeat."""

    CONTINUE = "continue"
    CANCEL = "cancel"


@dataclass(frozen=True)
class Lease:
    stage_id: str
    token: str
    attempt: int


@dataclass(frozen=True)
class NewArtifact:
    kind: str
    label: Label
    stored: StoredArtifact


def get(session: Session, job_id: str, *, tenant_id: str, field: str = "job") -> Job:
    """Raises :class:`NotFound` (``job_not_found``), the same for another tenant's job."""
    job = session.get(Job, job_id)
    if job is None or job.tenant_id != tenant_id:
        raise NotFound(f"{field}: there is no job {job_id!r}", code="job_not_found", field=field, value=job_id)
    return job


def spec_of(job: Job) -> JobSpec:
    return JobSpec.model_validate_json(json.dumps(job.spec))


def definition_of(stage: Stage) -> StageDef:
    """What the job's recipe says of this stage."""
    return stage_def(spec_of(stage.job), stage.name)


def kept_pairs(session: Session, job_id: str) -> Artifact | None:
    """The pairs that a job's filters kept; None if it has none."""
    return session.scalars(
        select(Artifact).where(Artifact.job_id == job_id, Artifact.kind == "synthetic")
    ).one_or_none()


def listing(session: Session, *, tenant_id: str, after: str | None, limit: int) -> list[Job]:
    """Newest first, at most ``limit``, those older than ``after``."""
    query = select(Job).where(Job.tenant_id == tenant_id)
    if after is not None:
        last = get(session, after, tenant_id=tenant_id)
        query = query.where(tuple_(Job.created_at, Job.id) < tuple_(last.created_at, last.id))
    return list(session.scalars(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)))


def lock(session: Session, job_id: str) -> Job:
    """The job's row, locked: every change of a job or of one of its stages holds this lock."""
    query = select(Job).where(Job.id == job_id).with_for_update(key_share=True)
    return session.scalars(query.execution_options(populate_existing=True)).one()


def _set_job(session: Session, job: Job, state: JobState, **data: object) -> None:
    require_transition(JobState(job.state), state)
    job.state = state
    if state is JobState.RUNNING:
        job.started_at = func.now()
    elif state.ended:
        job.ended_at = func.now()
    session.flush()
    events.emit(session, job.id, f"job.{state}", dict(data))


def _set_stage(session: Session, stage: Stage, state: StageState, **data: object) -> None:
    require_transition(StageState(stage.state), state)
    stage.state = state
    if state is StageState.RUNNING:
        stage.started_at = func.now()
    else:
        stage.woken_at = func.clock_timestamp() if state is StageState.QUEUED else None
        stage.lease_token = None
        stage.lease_until = None
    if state in (StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED):
        stage.ended_at = func.now()
    session.flush()
    events.emit(session, stage.job_id, f"stage.{state}", {"stage": stage.name, **data})


def lease_stage(session: Session, stage_id: str, *, lease_seconds: float) -> Lease | None:
    """Take a stage that waits, or whose lease ran out. None if there is nothing to do (a late or doubled message)."""
    job_id = session.scalars(select(Stage.job_id).where(Stage.id == stage_id)).one_or_none()
    if job_id is None:
        return None
    job = lock(session, job_id)
    free = or_(
        Stage.state == StageState.QUEUED,
        (Stage.state == StageState.RUNNING) & (Stage.lease_until < func.clock_timestamp()),
    )
    query = select(Stage).where(Stage.id == stage_id, free).with_for_update(key_share=True)
    stage = session.scalars(query.execution_options(populate_existing=True)).one_or_none()
    if stage is None or job.state not in (JobState.QUEUED, JobState.RUNNING):
        return None
    if job.state == JobState.QUEUED:
        _set_job(session, job, JobState.RUNNING)
    if stage.state == StageState.RUNNING:
        _set_stage(session, stage, StageState.QUEUED, reason="lease_lost")
    stage.attempt += 1
    token = new_id("lease")
    _set_stage(session, stage, StageState.RUNNING, attempt=stage.attempt)
    stage.lease_token = token
    stage.lease_until = func.clock_timestamp() + timedelta(seconds=lease_seconds)
    session.flush()
    return Lease(stage_id=stage.id, token=token, attempt=stage.attempt)


def _held(session: Session, lease: Lease) -> tuple[Job, Stage]:
    job_id = session.scalars(select(Stage.job_id).where(Stage.id == lease.stage_id)).one()
    job = lock(session, job_id)
    query = select(Stage).where(Stage.id == lease.stage_id)
    stage = session.scalars(query.execution_options(populate_existing=True)).one()
    if stage.lease_token != lease.token:
        raise LeaseLost(f"attempt {lease.attempt} of stage {lease.stage_id} lost its lease")
    return job, stage


def heartbeat(session: Session, lease: Lease, *, lease_seconds: float, progress: JsonObject | None) -> Directive:
    """Prolong the lease and write progress (``done``, ``total``, ``note``) if there is news.

    Raises :class:`LeaseLost`.
    """
    job, stage = _held(session, lease)
    stage.lease_until = func.clock_timestamp() + timedelta(seconds=lease_seconds)
    if progress is not None:
        stage.progress = progress
        session.flush()
        events.emit(session, job.id, "stage.progress", {"stage": stage.name, **progress})
    return Directive.CANCEL if job.state == JobState.CANCELLING else Directive.CONTINUE


def finish_stage(
    session: Session,
    lease: Lease,
    *,
    artifacts: Sequence[NewArtifact],
    inputs: JsonObject,
    metrics: JsonObject,
    steps_taken: int | None,
) -> Wake | None:
    """Write a stage's artifacts and success, charge the ledger for ``steps_taken`` (the accounted stage; None: no other
    stage charges), and queue the next stage, all in one transaction. The last stage ends the job.

    Raises :class:`LeaseLost`.
    """
    job, stage = _held(session, lease)
    for artifact in artifacts:
        session.add(
            Artifact(
                id=new_id("art"),
                tenant_id=job.tenant_id,
                kind=artifact.kind,
                label=artifact.label,
                sha256=artifact.stored.sha256,
                bytes=artifact.stored.bytes,
                files=list(artifact.stored.files),
                inputs=inputs,
                stage_id=stage.id,
                job_id=job.id,
            )
        )
    stage.metrics = metrics
    _set_stage(session, stage, StageState.SUCCEEDED, metrics=metrics)
    if steps_taken is not None:
        ledger.settle(session, job_id=job.id, steps_taken=steps_taken)
    if job.state == JobState.CANCELLING:
        _end_cancelled(session, job)
        return None
    following = [other for other in job.stages if other.position == stage.position + 1]
    if not following:
        _set_job(session, job, JobState.SUCCEEDED)
        return None
    _set_stage(session, following[0], StageState.QUEUED)
    return Wake(stage_id=following[0].id, queue=following[0].queue)


def fail_stage(session: Session, lease: Lease, *, code: str, message: str, steps_taken: int | None) -> None:
    """End the stage and its job as failed. ``steps_taken``: of the accounted stage; None for any other. Raises
    :class:`LeaseLost`."""
    job, stage = _held(session, lease)
    stage.error_code = code
    _set_stage(session, stage, StageState.FAILED, code=code)
    # Another stage's failure settles too: before the accounted stage no step was taken, after it this changes nothing.
    ledger.settle(session, job_id=job.id, steps_taken=steps_taken or 0)
    if job.state == JobState.CANCELLING:
        _end_cancelled(session, job)
        return
    for other in job.stages:
        if other.state == StageState.PENDING:
            _set_stage(session, other, StageState.SKIPPED)
    job.error_code = code
    job.error_message = message
    _set_job(session, job, JobState.FAILED, code=code, message=message)


def give_back(session: Session, lease: Lease) -> Wake:
    """Return a leased stage unfinished (the worker is shutting down); the attempt does not count."""
    _, stage = _held(session, lease)
    stage.attempt -= 1
    _set_stage(session, stage, StageState.QUEUED, reason="worker_shutdown")
    return Wake(stage_id=stage.id, queue=stage.queue)


def request_cancel(session: Session, job_id: str) -> Job:
    """Cancel a job: at once if no stage runs, else its worker is told at the next heartbeat.

    Raises :class:`Conflict` (``job_ended``) for a job that has ended. Cancelling twice is one cancellation.
    """
    job = lock(session, job_id)
    if JobState(job.state).ended:
        raise Conflict(f"job: {job.id} has already {job.state}", code="job_ended", field="job", value=job.id)
    if job.state == JobState.QUEUED:
        ledger.settle(session, job_id=job.id, steps_taken=0)
        _cancel_stages(session, job)
        _set_job(session, job, JobState.CANCELLED)
    elif job.state == JobState.RUNNING:
        _set_job(session, job, JobState.CANCELLING)
    return job


def finish_cancel(session: Session, job_id: str, *, steps_taken: int) -> None:
    """End a ``cancelling`` job whose worker stopped or died; ``steps_taken`` of its accounted stage are charged."""
    job = lock(session, job_id)
    if job.state != JobState.CANCELLING:
        return
    ledger.settle(session, job_id=job.id, steps_taken=steps_taken)
    _end_cancelled(session, job)


def _end_cancelled(session: Session, job: Job) -> None:
    # Whoever knows of steps has settled before; this releases what a job reserved whose accounted stage never began.
    ledger.settle(session, job_id=job.id, steps_taken=0)
    _cancel_stages(session, job)
    _set_job(session, job, JobState.CANCELLED)


def _cancel_stages(session: Session, job: Job) -> None:
    for stage in job.stages:
        if stage.state in (StageState.PENDING, StageState.QUEUED, StageState.RUNNING):
            _set_stage(session, stage, StageState.CANCELLED)


def accounted_stage(job: Job) -> Stage | None:
    """The stage of this job whose steps are charged to the ledger."""
    return next((stage for stage in job.stages if definition_of(stage).accounted), None)

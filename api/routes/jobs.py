"""Jobs: estimate, submit, follow, cancel, report."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Header, Query
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from api.auth import UseCaller, require_may_read
from api.context import Context, UseContext
from api.idempotency import UseIdempotencyKey, once
from api.schemas import (
    ArtifactObject,
    BudgetObject,
    EstimateObject,
    EventObject,
    JobObject,
    ListObject,
    UsePage,
    page_of,
)
from privcode import events, jobs, ledger, submission
from privcode.db.models import Artifact
from privcode.db.session import transaction
from privcode.errors import BudgetExceeded, NotFound
from privcode.keys import Caller
from privcode.queue import Wake, enqueue
from privcode.results import JsonObject
from privcode.specs import JobSpec
from privcode.states import JobState

log = logging.getLogger(__name__)
router = APIRouter(tags=["jobs"])

_SSE_POLL_SECONDS: Final = 0.5
_SSE_KEEPALIVE_SECONDS: Final = 15.0
# The page is self-contained: its own styles and nothing else, no script whatever a dataset's name may say.
_REPORT_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"

JobRequest = Annotated[
    dict[str, Any],
    Body(
        description="A job: a preset and what differs from it, or the complete spec.",
        examples=[{"preset": "demo", "dataset": "ds_…", "prompts": "ds_…", "privacy": {"target_epsilon": 2.0}}],
        json_schema_extra={"spec": JobSpec.model_json_schema()},
    ),
]


@router.post("/jobs/estimate")
def estimate_job(request: JobRequest, context: UseContext, caller: UseCaller) -> EstimateObject:
    """What a job would spend, without running or reserving anything."""
    with transaction(context.sessions) as session:
        found = submission.check(
            session,
            tenant_id=caller.tenant_id,
            request=request,
            models_dir=context.settings.models_dir,
            store=context.store,
        )
        try:
            budget, fits = submission.budget_after(session, found), True
        except BudgetExceeded:
            budget, fits = ledger.budget(session, dataset=found.dataset), False
        return EstimateObject(
            plan=found.plan,
            epsilon_rdp=found.epsilon_rdp,
            trainable_parameters=found.trainable_parameters,
            signal_to_noise=found.signal_to_noise,
            fits=fits,
            budget=BudgetObject.of(budget),
            warnings=found.warnings,
        )


@router.post("/jobs", status_code=201)
def create_job(
    request: JobRequest, context: UseContext, caller: UseCaller, idempotency_key: UseIdempotencyKey = None
) -> JobObject:
    """Reserve the budget, store the job, queue its first stage. Send an ``Idempotency-Key``: a job that is submitted
    twice spends privacy twice."""
    wakes: list[Wake] = []

    def run() -> JsonObject:
        job, wake = submission.submit(
            session,
            tenant_id=caller.tenant_id,
            request=request,
            models_dir=context.settings.models_dir,
            store=context.store,
        )
        wakes.append(wake)
        session.refresh(job)
        return JobObject.of(job).model_dump(mode="json")

    with transaction(context.sessions) as session:
        answer = once(
            session,
            tenant_id=caller.tenant_id,
            key=idempotency_key,
            request_sha256=hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest(),
            run=run,
        )
    for wake in wakes:
        _send(context, wake)
    return JobObject.model_validate(answer)


def _send(context: Context, wake: Wake) -> None:
    try:
        enqueue(context.celery, wake)
    except Exception as error:
        # The job is stored; reconcile sends the message when the broker is back.
        log.warning("could not wake %s: %s", wake.queue, type(error).__name__)


@router.get("/jobs")
def list_jobs(page: UsePage, context: UseContext, caller: UseCaller) -> ListObject[JobObject]:
    """Newest first."""
    with transaction(context.sessions) as session:
        rows = jobs.listing(session, tenant_id=caller.tenant_id, after=page.after, limit=page.limit + 1)
        return page_of(rows, limit=page.limit, items=[JobObject.of(row) for row in rows])


@router.get("/jobs/{job_id}")
def get_job(job_id: str, context: UseContext, caller: UseCaller) -> JobObject:
    with transaction(context.sessions) as session:
        return JobObject.of(jobs.get(session, job_id, tenant_id=caller.tenant_id))


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, context: UseContext, caller: UseCaller) -> JobObject:
    """Stop a job. The budget that it has not spent is released; steps that it took stay charged."""
    with transaction(context.sessions) as session:
        jobs.get(session, job_id, tenant_id=caller.tenant_id)
        job = jobs.request_cancel(session, job_id)
        session.refresh(job)
        return JobObject.of(job)


@router.get("/jobs/{job_id}/artifacts")
def list_artifacts(job_id: str, context: UseContext, caller: UseCaller) -> ListObject[ArtifactObject]:
    """What the job's stages wrote, each with its privacy label."""
    with transaction(context.sessions) as session:
        job = jobs.get(session, job_id, tenant_id=caller.tenant_id)
        rows = session.scalars(select(Artifact).where(Artifact.job_id == job.id).order_by(Artifact.created_at))
        return ListObject(data=[ArtifactObject.of(row) for row in rows], has_more=False)


@router.get("/jobs/{job_id}/report", response_class=Response)
def get_report(
    job_id: str, context: UseContext, caller: UseCaller, accept: Annotated[str, Header()] = "application/json"
) -> FileResponse:
    """The report: JSON, or HTML where ``Accept`` names it. 404 (``report_not_ready``) until the job has written it. The
    report of a job whose results are private is for a privacy officer."""
    kind, media_type = ("report_html", "text/html") if "text/html" in accept else ("report_json", "application/json")
    with transaction(context.sessions) as session:
        job = jobs.get(session, job_id, tenant_id=caller.tenant_id)
        query = select(Artifact).where(Artifact.job_id == job.id, Artifact.kind == kind)
        artifact = session.scalars(query).one_or_none()
    if artifact is None:
        raise NotFound(f"job: {job_id} has no report yet; it is {job.state}", code="report_not_ready", field="job",
                       value=job_id)  # fmt: skip
    require_may_read(artifact, caller, field="job", value=job_id)
    return FileResponse(
        context.store.verify(artifact.sha256) / artifact.files[0],
        media_type=media_type,
        headers={"Content-Security-Policy": _REPORT_POLICY, "X-Content-Type-Options": "nosniff"},
    )


class EventPage(BaseModel):
    """Events with a number above ``after``."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(default=0, ge=0)
    limit: int = Field(default=100, ge=1, le=1000)


@router.get("/jobs/{job_id}/events", response_model=ListObject[EventObject])
def list_events(
    job_id: str,
    page: Annotated[EventPage, Query()],
    context: UseContext,
    caller: UseCaller,
    accept: Annotated[str, Header()] = "application/json",
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0)] = None,
) -> ListObject[EventObject] | StreamingResponse:
    """A page of events; or, with ``Accept: text/event-stream``, all from ``Last-Event-ID`` on as they happen, until the
    job has ended."""
    with transaction(context.sessions) as session:
        jobs.get(session, job_id, tenant_id=caller.tenant_id)
    if "text/event-stream" in accept:
        stream = _stream(context, caller, job_id, sequence=page.after if last_event_id is None else last_event_id)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    with transaction(context.sessions) as session:
        rows = events.after(session, job_id, sequence=page.after, limit=page.limit + 1)
        return page_of(rows, limit=page.limit, items=[EventObject.of(row) for row in rows])


async def _stream(context: Context, caller: Caller, job_id: str, *, sequence: int) -> AsyncIterator[str]:
    def news() -> tuple[list[EventObject], bool]:
        with transaction(context.sessions) as session:
            # The state first: an event that is written after it is read is found in the next round.
            ended = JobState(jobs.get(session, job_id, tenant_id=caller.tenant_id).state).ended
            found = events.after(session, job_id, sequence=sequence, limit=500)
            return [EventObject.of(event) for event in found], ended

    last_sent = time.monotonic()
    while True:
        found, ended = await run_in_threadpool(news)
        for event in found:
            sequence = event.sequence
            yield f"id: {event.sequence}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
        if ended and not found:
            return
        if found:
            last_sent = time.monotonic()
            continue
        if time.monotonic() - last_sent > _SSE_KEEPALIVE_SECONDS:
            yield ": still here\n\n"
            last_sent = time.monotonic()
        await asyncio.sleep(_SSE_POLL_SECONDS)

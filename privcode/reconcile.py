"""Send again what waits or whose lease ran out, and end cancelled jobs whose worker died.

Makes lost messages and lost workers harmless. Running it at any time, in any number of processes, changes nothing else.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from privcode import jobs
from privcode.db.models import Job, Stage
from privcode.queue import Wake
from privcode.states import JobState, StageState
from privcode.workspace import Workspace


def reconcile(session: Session, *, work_dir: Path, wake_again_seconds: float) -> list[Wake]:
    """Returns the stages to wake; the caller commits, then sends them.

    A stage is woken again at most every ``wake_again_seconds``, so that messages don't pile up behind a busy worker.
    """
    for job in session.scalars(select(Job).where(Job.state == JobState.CANCELLING)).all():
        running = [stage for stage in job.stages if stage.state == StageState.RUNNING]
        if not any(_lease_holds(session, stage) for stage in running):
            accounted = jobs.accounted_stage(job)
            steps = Workspace.of(work_dir, accounted.id).steps_taken() if accounted else 0
            jobs.finish_cancel(session, job.id, steps_taken=steps)
    now = func.clock_timestamp()
    free = (Stage.state == StageState.QUEUED) | ((Stage.state == StageState.RUNNING) & (Stage.lease_until < now))
    long_ago = Stage.woken_at.is_(None) | (Stage.woken_at <= now - timedelta(seconds=wake_again_seconds))
    alive = Stage.job.has(Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
    query = select(Stage).where(free, long_ago, alive).with_for_update(skip_locked=True, key_share=True)
    wakes = []
    for stage in session.scalars(query):
        stage.woken_at = now
        wakes.append(Wake(stage_id=stage.id, queue=stage.queue))
    session.flush()
    return wakes


def _lease_holds(session: Session, stage: Stage) -> bool:
    query = select(Stage.id).where(Stage.id == stage.id, Stage.lease_until >= func.clock_timestamp())
    return session.scalars(query).one_or_none() is not None

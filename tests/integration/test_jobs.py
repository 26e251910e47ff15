"""Leases, the state machine and events on a real database."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select

from privcode import events, jobs, ledger, submission
from privcode.artifacts import ArtifactStore
from privcode.db.models import Dataset, Event, Job, LedgerEntry, Stage
from privcode.db.session import SessionFactory, transaction
from privcode.errors import Conflict
from privcode.jobs import Directive, Lease, LeaseLost
from privcode.queue import Wake
from privcode.recipes import PRIVCODE
from privcode.reconcile import reconcile
from privcode.settings import Settings
from privcode.workspace import Workspace


@pytest.fixture
def job(sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings) -> SimpleNamespace:
    with transaction(sessions) as session:
        made, wake = submission.submit(
            session,
            tenant_id=tenant.id,
            request=tenant.request,
            models_dir=settings.models_dir,
            store=ArtifactStore(settings.artifacts_dir),
        )
        return SimpleNamespace(id=made.id, first=wake.stage_id, dataset=tenant.dataset)


def _lease(sessions: SessionFactory, stage_id: str, *, seconds: float = 60.0) -> Lease | None:
    with transaction(sessions) as session:
        return jobs.lease_stage(session, stage_id, lease_seconds=seconds)


def _finish(sessions: SessionFactory, lease: Lease, *, steps_taken: int | None = None) -> Wake | None:
    with transaction(sessions) as session:
        return jobs.finish_stage(
            session, lease, artifacts=[], inputs={}, metrics={"figure": 1}, steps_taken=steps_taken
        )


def _state(sessions: SessionFactory, job_id: str) -> tuple[str, list[str]]:
    with transaction(sessions) as session:
        found = session.get_one(Job, job_id)
        return found.state, [stage.state for stage in found.stages]


def test_the_recipe_runs_through_in_order(sessions: SessionFactory, job: SimpleNamespace) -> None:
    stage_id, names = job.first, []
    while stage_id:
        lease = _lease(sessions, stage_id)
        assert lease
        with transaction(sessions) as session:
            names.append(session.get_one(Stage, stage_id).name)
        wake = _finish(sessions, lease, steps_taken=4 if len(names) == 1 else None)
        stage_id = wake.stage_id if wake else None
    assert names == [stage.name for stage in PRIVCODE]
    assert _state(sessions, job.id) == ("succeeded", ["succeeded"] * len(PRIVCODE))


def test_many_workers_one_lease(sessions: SessionFactory, job: SimpleNamespace) -> None:
    start, leases = threading.Barrier(6), []

    def take() -> None:
        start.wait()
        leases.append(_lease(sessions, job.first))

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease is not None for lease in leases) == 1


def test_a_worker_that_lost_its_lease_can_not_write(sessions: SessionFactory, job: SimpleNamespace) -> None:
    zombie = _lease(sessions, job.first, seconds=-1)
    assert zombie
    successor = _lease(sessions, job.first)
    assert successor
    assert successor.attempt == 2
    for write in (
        lambda session: jobs.heartbeat(session, zombie, lease_seconds=60, progress={"done": 1}),
        lambda session: jobs.finish_stage(session, zombie, artifacts=[], inputs={}, metrics={}, steps_taken=1),
        lambda session: jobs.fail_stage(session, zombie, code="x", message="x", steps_taken=1),
        lambda session: jobs.give_back(session, zombie),
    ):
        with pytest.raises(LeaseLost), transaction(sessions) as session:
            write(session)
    assert _state(sessions, job.id)[1][0] == "running"
    _finish(sessions, successor, steps_taken=4)


def test_a_pending_stage_can_not_be_leased(sessions: SessionFactory, job: SimpleNamespace) -> None:
    with transaction(sessions) as session:
        second = session.scalars(select(Stage.id).where(Stage.job_id == job.id, Stage.position == 1)).one()
    assert _lease(sessions, second) is None
    assert _lease(sessions, "stg_unknown") is None


def test_a_failure_ends_the_job_and_charges_the_steps(sessions: SessionFactory, job: SimpleNamespace) -> None:
    lease = _lease(sessions, job.first)
    assert lease
    with transaction(sessions) as session:
        jobs.fail_stage(session, lease, code="stage_crashed", message="sanitize stopped", steps_taken=2)
    state, stages = _state(sessions, job.id)
    assert (state, stages[0], set(stages[1:])) == ("failed", "failed", {"skipped"})
    with transaction(sessions) as session:
        entry = session.query(LedgerEntry).one()
        assert (entry.state, entry.steps) == ("spent", 2)
        assert session.get_one(Job, job.id).error_code == "stage_crashed"


def test_cancel_before_a_worker_came(sessions: SessionFactory, job: SimpleNamespace) -> None:
    with transaction(sessions) as session:
        jobs.request_cancel(session, job.id)
    assert _state(sessions, job.id) == ("cancelled", ["cancelled"] * len(PRIVCODE))
    assert _lease(sessions, job.first) is None
    with pytest.raises(Conflict, match="already cancelled"), transaction(sessions) as session:
        jobs.request_cancel(session, job.id)


def test_cancel_while_it_runs(sessions: SessionFactory, job: SimpleNamespace) -> None:
    lease = _lease(sessions, job.first)
    assert lease
    with transaction(sessions) as session:
        jobs.request_cancel(session, job.id)
    with transaction(sessions) as session:
        assert jobs.heartbeat(session, lease, lease_seconds=60, progress=None) is Directive.CANCEL
    with transaction(sessions) as session:
        jobs.finish_cancel(session, job.id, steps_taken=3)
    assert _state(sessions, job.id) == ("cancelled", ["cancelled"] * len(PRIVCODE))
    with transaction(sessions) as session:
        left = ledger.budget(session, dataset=session.get_one(Dataset, job.dataset))
        assert session.query(LedgerEntry).one().steps == 3
    assert 0 < left.epsilon_spent == left.epsilon_committed < 4


def test_cancel_meets_a_stage_that_has_just_finished(sessions: SessionFactory, job: SimpleNamespace) -> None:
    lease = _lease(sessions, job.first)
    assert lease
    with transaction(sessions) as session:
        jobs.request_cancel(session, job.id)
    assert _finish(sessions, lease, steps_taken=4) is None
    state, stages = _state(sessions, job.id)
    assert (state, stages[0], set(stages[1:])) == ("cancelled", "succeeded", {"cancelled"})


def test_give_back_does_not_count_as_an_attempt(sessions: SessionFactory, job: SimpleNamespace) -> None:
    lease = _lease(sessions, job.first)
    assert lease
    with transaction(sessions) as session:
        jobs.give_back(session, lease)
    again = _lease(sessions, job.first)
    assert again
    assert again.attempt == 1


def test_reconcile_finds_lost_messages_and_lost_workers(
    sessions: SessionFactory, job: SimpleNamespace, settings: Settings
) -> None:
    def waiting() -> list[str]:
        with transaction(sessions) as session:
            return [wake.stage_id for wake in reconcile(session, work_dir=settings.work_dir, wake_again_seconds=0)]

    assert waiting() == [job.first]
    lease = _lease(sessions, job.first)
    assert waiting() == [], "its worker holds a lease"
    with transaction(sessions) as session:
        session.get_one(Stage, job.first).lease_until = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 1)
    assert waiting() == [job.first]
    assert lease
    with transaction(sessions) as session:
        assert reconcile(session, work_dir=settings.work_dir, wake_again_seconds=60) == [], "it was woken just now"


def test_reconcile_ends_a_cancelled_job_whose_worker_died(
    sessions: SessionFactory, job: SimpleNamespace, settings: Settings
) -> None:
    assert _lease(sessions, job.first, seconds=-1)
    keep = Workspace.of(settings.work_dir, job.first).keep
    keep.mkdir(parents=True)
    (keep / "steps_taken").write_text("2")
    with transaction(sessions) as session:
        jobs.request_cancel(session, job.id)
    with transaction(sessions) as session:
        assert reconcile(session, work_dir=settings.work_dir, wake_again_seconds=0) == []
    assert _state(sessions, job.id)[0] == "cancelled"
    with transaction(sessions) as session:
        assert session.query(LedgerEntry).one().steps == 2


def test_events_are_numbered_without_a_gap(sessions: SessionFactory, job: SimpleNamespace) -> None:
    start = threading.Barrier(4)

    def emit() -> None:
        start.wait()
        for number in range(5):
            with transaction(sessions) as session:
                events.emit(session, job.id, "test", {"number": number})

    threads = [threading.Thread(target=emit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with transaction(sessions) as session:
        numbers = list(session.scalars(select(Event.sequence).where(Event.job_id == job.id).order_by(Event.sequence)))
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) == 21
        assert [event.sequence for event in events.after(session, job.id, sequence=18, limit=2)] == [19, 20]

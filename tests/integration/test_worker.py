"""A worker against the real database; its child processes are tested end to end."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from privcode import jobs, submission
from privcode.artifacts import ArtifactStore
from privcode.db.models import Artifact, Job, Stage, new_id
from privcode.db.session import SessionFactory, transaction
from privcode.settings import Settings
from privcode.worker import Worker


@pytest.fixture
def stage_id(sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings) -> str:
    with transaction(sessions) as session:
        _, wake = submission.submit(
            session,
            tenant_id=tenant.id,
            request=tenant.request,
            models_dir=settings.models_dir,
            store=ArtifactStore(settings.artifacts_dir),
        )
        return wake.stage_id


def _worker(settings: Settings, sessions: SessionFactory, **over: float) -> Worker:
    return Worker(
        service="trainer", settings=settings.model_copy(update=over), sessions=sessions, stopping=lambda: False
    )


def test_a_lease_outlives_long_hashing(sessions: SessionFactory, settings: Settings, stage_id: str) -> None:
    worker = _worker(settings, sessions, lease_seconds=1.0, heartbeat_seconds=0.05)
    with transaction(sessions) as session:
        lease = jobs.lease_stage(session, stage_id, lease_seconds=1.0)
    assert lease

    def until() -> float:
        with transaction(sessions) as session:
            found = session.get_one(Stage, stage_id).lease_until
            assert found
            return found.timestamp()

    first, deadline = until(), time.monotonic() + 20
    with worker._kept(lease):
        while until() < first + 0.5:
            assert time.monotonic() < deadline, "nobody prolonged the lease"
            time.sleep(0.02)


def test_a_damaged_input_fails_the_job_and_costs_nothing(
    sessions: SessionFactory, settings: Settings, tenant: SimpleNamespace, stage_id: str
) -> None:
    store = ArtifactStore(settings.artifacts_dir)
    with transaction(sessions) as session:
        for dataset in (tenant.dataset, tenant.prompts):
            folder = store.staging()
            (folder / "dataset.jsonl").write_text(dataset)
            stored = store.put(folder)
            session.add(
                Artifact(
                    id=new_id("art"), tenant_id=tenant.id, kind="dataset", label="private", sha256=stored.sha256,
                    bytes=stored.bytes, files=list(stored.files), inputs={}, dataset_id=dataset,
                )
            )  # fmt: skip
            (store.path(stored.sha256) / "dataset.jsonl").write_text("changed")
    assert _worker(settings, sessions).run(stage_id) is None
    with transaction(sessions) as session:
        stage = session.get_one(Stage, stage_id)
        job = session.get_one(Job, stage.job_id)
        assert (job.state, job.error_code, stage.error_code) == ("failed", "artifact_corrupt", "artifact_corrupt")


def test_a_stage_that_was_lost_too_often_is_given_up(
    sessions: SessionFactory, settings: Settings, stage_id: str
) -> None:
    for _ in range(settings.max_attempts):
        with transaction(sessions) as session:
            assert jobs.lease_stage(session, stage_id, lease_seconds=-1)
    assert _worker(settings, sessions).run(stage_id) is None
    with transaction(sessions) as session:
        job = session.get_one(Job, session.get_one(Stage, stage_id).job_id)
        assert (job.state, job.error_code) == ("failed", "attempts_exhausted")


def test_a_message_for_a_stage_that_is_not_free_does_nothing(
    sessions: SessionFactory, settings: Settings, stage_id: str
) -> None:
    with transaction(sessions) as session:
        assert jobs.lease_stage(session, stage_id, lease_seconds=60)
    assert _worker(settings, sessions).run(stage_id) is None
    assert _worker(settings, sessions).run("stg_unknown") is None
    with transaction(sessions) as session:
        assert session.get_one(Stage, stage_id).attempt == 1

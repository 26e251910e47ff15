"""A worker against the real database; its child processes are tested end to end."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from privcode import jobs, submission
from privcode.artifacts import ArtifactStore
from privcode.checkpoints import Generations
from privcode.db.models import Artifact, Dataset, Job, LedgerEntry, Stage, new_id
from privcode.db.session import SessionFactory, transaction
from privcode.results import PrivacyPlan
from privcode.settings import Settings
from privcode.stage_io import StageTask
from privcode.worker import Worker
from privcode.workspace import Workspace


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


def _store(sessions: SessionFactory, settings: Settings, tenant: SimpleNamespace) -> list[Path]:
    """Files for the tenant's two datasets, as artifacts."""
    store = ArtifactStore(settings.artifacts_dir)
    files = []
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
            files.append(store.path(stored.sha256) / "dataset.jsonl")
    return files


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
    for path in _store(sessions, settings, tenant):
        path.write_text("changed")
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


@pytest.mark.parametrize(("damaged", "checkpointed"), [(0, 2), (1, 1), (2, None)])
def test_a_next_attempt_is_reserved_for_from_the_checkpoint_that_is_whole(
    sessions: SessionFactory, settings: Settings, tenant: SimpleNamespace, stage_id: str, damaged: int,
    checkpointed: int | None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _store(sessions, settings, tenant)
    workspace = Workspace.of(settings.work_dir, stage_id)
    workspace.keep.mkdir(parents=True)
    (workspace.keep / "steps_taken").write_text("3")
    generations = Generations(workspace.keep)
    for step in (1, 2):
        generations.write(step, lambda file: file.write(b"state"))
    for path in sorted(workspace.keep.glob("checkpoint-*"), reverse=True)[:damaged]:
        path.write_bytes(b"")
    with transaction(sessions) as session:
        session.get_one(Dataset, tenant.dataset).budget_epsilon = 100.0
        plan = PrivacyPlan.model_validate(session.get_one(Stage, stage_id).job.plan)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert _worker(settings, sessions).run(stage_id) is None
    with transaction(sessions) as session:
        entry = session.query(LedgerEntry).one()
        assert (entry.state, entry.steps) == ("spent", 3), "what was taken is charged"
        code = session.get_one(Stage, stage_id).error_code
    task = workspace.root / "attempt-1" / "stage.json"
    if checkpointed is None:
        assert code == "checkpoint_unusable"
        assert not task.exists()
    else:
        assert code == "stage_killed"
        reserved = StageTask.model_validate_json(task.read_bytes()).reserved_steps
        assert reserved == 3 + plan.steps - checkpointed

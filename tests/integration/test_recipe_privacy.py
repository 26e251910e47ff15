"""What a recipe that stays private shows, and to whom."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from privcode import jobs
from privcode.artifacts import ArtifactStore
from privcode.db.models import ApiKey, Job, Stage, new_id
from privcode.db.session import SessionFactory, transaction
from privcode.recipes import Label
from privcode.settings import Settings
from privcode.stage_io import StageEnvironment, StageInput, StageTask
from privcode.worker import Worker, _child_error, _shows_nothing
from privcode.workspace import Workspace
from tests.integration.recipe_data import PAIRS, add_artifact, request


@pytest.fixture
def officer(sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings) -> TestClient:
    from argon2 import PasswordHasher

    key = "pc_0ff1ce00_" + "b" * 48
    with transaction(sessions) as session:
        session.add(
            ApiKey(
                id=new_id("key"), tenant_id=tenant.id, prefix="0ff1ce00", key_hash=PasswordHasher().hash(key),
                role="privacy_officer",
            )
        )  # fmt: skip
    return TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"})


@pytest.mark.parametrize("label", Label)
@pytest.mark.parametrize("kind", ["report_json", "report_html"])
def test_a_private_report_is_for_the_privacy_officer(
    client: TestClient, officer: TestClient, data: SimpleNamespace, sessions: SessionFactory, store: ArtifactStore,
    kind: str, label: Label,
) -> None:  # fmt: skip
    job = client.post("/v1/jobs", json=request("nondpft", data)).json()["id"]
    with transaction(sessions) as session:
        tenant_id = session.get_one(Job, job).tenant_id
        made = add_artifact(session, store, tenant_id, PAIRS[:1], kind=kind, label=label, job_id=job).id
    accept = {"Accept": "text/html" if kind == "report_html" else "application/json"}
    for path, field, value in (
        (f"/v1/jobs/{job}/report", "job", job),
        (f"/v1/artifacts/{made}/content", "artifact", made),
    ):
        assert officer.get(path, headers=accept).status_code == 200
        answer = client.get(path, headers=accept)
        if label is Label.PRIVATE:
            refusal = answer.json()
            assert (answer.status_code, refusal["code"]) == (403, "artifact_private")
            assert (refusal["field"], refusal["value"]) == (field, value)
        else:
            assert answer.status_code == 200


def _child(tmp_path: Path, job_id: str, stage: str, spec: Any, labels: Mapping[str, Label]) -> StageTask:
    return StageTask(
        job_id=job_id, stage=stage, attempt=1, spec=spec, plan=None,
        inputs={kind: StageInput(path=str(tmp_path), label=label) for kind, label in labels.items()},
        keep_dir=str(tmp_path),
        environment=StageEnvironment(models_dir="", sandbox_socket="", threads=1), history={},
    )  # fmt: skip


def test_what_a_worker_passes_on_of_a_private_stage(
    client: TestClient, data: SimpleNamespace, sessions: SessionFactory, settings: Settings, tmp_path: Path
) -> None:
    seen = {}
    for recipe, label in (("nondpft", Label.PRIVATE), ("dpft", Label.DP)):
        job = client.post("/v1/jobs", json=request(recipe, data)).json()["id"]
        with transaction(sessions) as session:
            stage = session.query(Stage).filter_by(job_id=job, name="evaluate").one()
            definition, spec = jobs.definition_of(stage), jobs.spec_of(stage.job)
            # The earlier stages are over.
            for earlier in stage.job.stages[: stage.position]:
                earlier.state = "succeeded"
            stage.state = "queued"
            stage_id = stage.id
        folder = tmp_path / recipe
        for kind in definition.writes:
            (folder / "outputs" / kind).mkdir(parents=True)
            (folder / "outputs" / kind / "file.json").write_text(recipe + kind)
        (folder / "result.json").write_text('{"metrics": {"pass_at_1_tuned": 0.25}}')
        (folder / "error.json").write_text('{"code": "no_training_data", "message": "17 of 40 rows"}')
        task = _child(folder, job, "evaluate", spec, {"premium_model": label})
        assert _shows_nothing(task, definition) == (recipe == "nondpft")
        error = _child_error(folder, "evaluate", 1, private=_shows_nothing(task, definition))
        with transaction(sessions) as session:
            lease = jobs.lease_stage(session, stage_id, lease_seconds=60)
        assert lease
        worker = Worker(service="evaluator", settings=settings, sessions=sessions, stopping=lambda: False)
        worker._finish(lease, Workspace.of(settings.work_dir, stage_id), folder, task, definition)
        shown = {one["name"]: one["metrics"] for one in client.get(f"/v1/jobs/{job}").json()["stages"]}
        events = client.get(f"/v1/jobs/{job}/events").json()["data"]
        labels = {one["kind"]: one["label"] for one in client.get(f"/v1/jobs/{job}/artifacts").json()["data"]}
        seen[recipe] = (shown["evaluate"], "0.25" in json.dumps(events), error.code, "17" in error.message, labels)
    written = ("evaluation", "evaluation_samples")
    assert seen == {
        "nondpft": ({}, False, "no_training_data", False, dict.fromkeys(written, "private")),
        "dpft": ({"pass_at_1_tuned": 0.25}, True, "no_training_data", True, dict.fromkeys(written, "dp")),
    }

"""Jobs of other recipes at the front door: what is refused, what is reserved, who may read what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from privcode import jobs
from privcode.artifacts import ArtifactStore
from privcode.canaries import planted_count
from privcode.db.models import Dataset, Job, LedgerEntry, Stage, Tenant
from privcode.db.session import SessionFactory, transaction
from privcode.recipes import RECIPES, Label
from privcode.settings import Settings
from privcode.stage_io import StageTask
from privcode.worker import _stage_task
from privcode.workspace import Workspace
from tests.integration.conftest import add_dataset
from tests.integration.recipe_data import PAIRS, add_artifact, request
from tests.recipes import WARM_UP


def problem(client: TestClient, body: dict[str, Any]) -> tuple[int, str, str, Any]:
    """Status, code, field and value of a refusal, the same for submission and estimate."""
    answers = [client.post(path, json=body) for path in ("/v1/jobs", "/v1/jobs/estimate")]
    found = [(one.status_code, *(one.json().get(key) for key in ("code", "field", "value"))) for one in answers]
    assert found[0] == found[1]
    return found[0]


@pytest.fixture
def kept(sessions: SessionFactory, data: SimpleNamespace, client: TestClient, store: ArtifactStore) -> Any:
    """``kept(rows, state=...)`` -> a job whose filters kept ``rows``; None: it has no such artifact."""

    def make(rows: Sequence[Mapping[str, str]] | None, *, state: str = "succeeded", recipe: str = "privcode") -> str:
        job_id: str = client.post("/v1/jobs", json=request(recipe, data, **_small(recipe))).json()["id"]
        with transaction(sessions) as session:
            job = session.get_one(Job, job_id)
            job.state = state
            if rows is not None:
                add_artifact(session, store, job.tenant_id, rows, kind="synthetic", label="dp", job_id=job_id)
        return job_id

    return make


def _small(recipe: str) -> dict[str, Any]:
    return {"privacy": {"target_epsilon": 0.5}} if "privacy" in RECIPES[recipe].needs else {}


def _count(sessions: SessionFactory) -> tuple[int, int]:
    with transaction(sessions) as session:
        return session.query(Job).count(), session.query(LedgerEntry).count()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_accepted_and_reserves_what_its_plan_says(
    client: TestClient, data: SimpleNamespace, sessions: SessionFactory, recipe: str
) -> None:
    estimate = client.post("/v1/jobs/estimate", json=request(recipe, data)).json()
    answer = client.post("/v1/jobs", json=request(recipe, data))
    assert answer.status_code == 201, answer.json()
    job = answer.json()
    assert job == client.get(f"/v1/jobs/{job['id']}").json()
    assert [stage["name"] for stage in job["stages"]] == [stage.name for stage in RECIPES[recipe].stages]
    assert (job["plan"], job["warnings"]) == (estimate["plan"], estimate["warnings"])
    entries = client.get(f"/v1/datasets/{data.dataset}/budget").json()["entries"]
    assert any("stay private" in text for text in job["warnings"]) == (recipe in ("jft", "nondpft"))
    if recipe == "nondpft":
        assert (job["plan"], entries, estimate["epsilon_rdp"], estimate["signal_to_noise"]) == (None, [], None, None)
        assert (estimate["fits"], estimate["budget"]["epsilon_left"]) == (True, 4.0)
        assert estimate["trainable_parameters"] > 0
        with transaction(sessions) as session:
            assert session.scalars(select(Job.plan).where(Job.plan.is_(None))).all() == [None], "no JSON null"
    else:
        assert job["plan"]["records"] == len(PAIRS) + planted_count(1)
        assert [(entry["job"], entry["state"]) for entry in entries] == [(job["id"], "reserved")]


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "privacy for nothing": ({"recipe": "nondpft", "privacy": {}}, "privacy_without_mechanism", "privacy"),
    "synthesis": ({"recipe": "dpft", "synthesize": {"max_prompts": 3}}, "unused_section", "synthesize"),
    "prompts": ({"recipe": "dpft", "prompts": "ds_x"}, "unused_section", "prompts"),
    "boost": ({"recipe": "noevol", "boost": {"steps": 1}}, "unused_section", "boost"),
    "describer": ({"recipe": "nopostprocess", "round_trip": {"tau": 0}}, "unused_section", "round_trip"),
    "warm-up": ({"recipe": "nondpft", "warm_up": WARM_UP}, "unused_section", "warm_up"),
    "rows": ({"recipe": "jft", "rows_of_job": "job_1"}, "unused_section", "rows_of_job"),
    "schedule": (
        {"recipe": "noast", "sanitize": {"privsa": {"schedule": "constant"}}},
        "schedule_of_recipe",
        "sanitize.privsa.schedule",
    ),
    "two models": ({"recipe": "jft", "boost": {"model": "google/codegemma-7b"},
                    "sanitize": {"model": "smollm2-135m-instruct"}}, "models_differ", "boost.model"),
    "recipe": ({"recipe": "best"}, "invalid_value", "recipe"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_a_recipe_does_not_use_is_refused_by_name(
    client: TestClient, data: SimpleNamespace, sessions: SessionFactory, name: str
) -> None:
    over, code, field = BAD[name]
    recipe = over["recipe"] if over["recipe"] in RECIPES else "privcode"
    assert problem(client, {**request(recipe, data), **over})[:3] == (422, code, field)
    assert _count(sessions) == (0, 0)


def test_missing_prompts_are_named(client: TestClient, data: SimpleNamespace) -> None:
    body = request("noast", data)
    del body["prompts"]
    assert problem(client, body) == (422, "missing_field", "prompts", None)


@pytest.mark.parametrize("recipe", ["privcode", "dpft", "jft"])
def test_a_warm_up_takes_public_pairs_alone(client: TestClient, data: SimpleNamespace, recipe: str) -> None:
    def asked(dataset: str) -> dict[str, Any]:
        return request(recipe, data, warm_up={**WARM_UP, "dataset": dataset})

    field = "warm_up.dataset"
    for private in (data.dataset, data.closed):
        assert problem(client, asked(private)) == (422, "warm_up_private", field, private)
    assert problem(client, asked(data.prompts)) == (422, "wrong_dataset_kind", field, data.prompts)
    assert problem(client, asked("ds_nowhere")) == (404, "dataset_not_found", field, "ds_nowhere")
    made = client.post("/v1/jobs", json=asked(data.open)).json()
    assert [stage["name"] for stage in made["stages"]][:2] == ["warm_up", "merge_warm_up"]


@pytest.mark.parametrize("recipe", ["dpft", "nondpft"])
def test_rows_of_a_job_that_can_not_be_used(
    client: TestClient, data: SimpleNamespace, kept: Any, sessions: SessionFactory, recipe: str
) -> None:
    def refusal(job_id: str) -> tuple[int, str, str, Any]:
        return problem(client, request(recipe, data, rows_of_job=job_id))

    field = "rows_of_job"
    assert refusal("job_nowhere") == (404, "job_not_found", field, "job_nowhere")
    running = kept(PAIRS[:2], state="running")
    assert refusal(running) == (422, "job_not_succeeded", field, running)
    direct = kept(None, recipe="noevol")
    assert refusal(direct) == (422, "no_kept_pairs", field, direct)
    others = kept([{"problem": "Something else.", "solution": "", "lang": "python"}])
    assert refusal(others) == (422, "no_matching_rows", field, others)
    foreign = kept(PAIRS[:2])
    with transaction(sessions) as session:
        session.add(Tenant(id="ten_other", name="other"))
        session.flush()
        session.get_one(Job, foreign).tenant_id = "ten_other"
    assert refusal(foreign) == (404, "job_not_found", field, foreign)


def test_the_rows_of_a_job_are_the_plans_records(client: TestClient, data: SimpleNamespace, kept: Any) -> None:
    # A problem that was kept twice, and one that is in no row.
    source = kept([*PAIRS[:12], PAIRS[0] | {"solution": "1"}, {"problem": "new", "solution": "", "lang": "python"}])
    body = request("dpft", data, rows_of_job=source, privacy={"target_epsilon": 0.5, "expected_batch": 4})
    plan = client.post("/v1/jobs", json=body).json()["plan"]
    assert plan["records"] == 12 + planted_count(1)
    assert plan["sample_rate"] == 4 / plan["units"]
    limit = {"target_epsilon": 0.5, "expected_batch": 18}
    assert problem(client, {**body, "privacy": limit})[1] == "batch_exceeds_records"


def test_the_units_of_a_job_are_those_of_its_rows(
    client: TestClient, data: SimpleNamespace, kept: Any, sessions: SessionFactory, store: ArtifactStore
) -> None:
    rows = [{**row, "unit_id": f"author {number // 4}"} for number, row in enumerate(PAIRS)]
    with transaction(sessions) as session:
        tenant = session.get_one(Dataset, data.dataset).tenant_id
        authors = add_dataset(session, tenant, visibility="private")
        dataset = session.get_one(Dataset, authors)
        dataset.rows, dataset.units = len(rows), 10
        add_artifact(session, store, tenant, rows, kind="dataset", label="private", dataset_id=authors)
    # All of authors 0 to 4, and one row of author 5.
    source = kept(PAIRS[:21])
    privacy = {"target_epsilon": 0.5, "expected_batch": 4, "max_records_per_unit": 2}
    body = request("dpft", data, rows_of_job=source, privacy=privacy) | {"dataset": authors}
    plan = client.post("/v1/jobs/estimate", json=body).json()["plan"]
    assert (plan["unit"], plan["records"], plan["units"]) == ("unit_id", 21 + planted_count(1), 6 + planted_count(1))


def _task(
    sessions: SessionFactory, settings: Settings, store: ArtifactStore, job_id: str, *, stage: int = 0
) -> StageTask:  # fmt: skip
    with transaction(sessions) as session:
        found = session.query(Stage).filter_by(job_id=job_id, position=stage).one()
        definition = jobs.definition_of(found)
        return _stage_task(
            session,
            found,
            definition,
            settings,
            store,
            Workspace.of(settings.work_dir, found.id),
            attempt=1,
            reserved_steps=None,
        )


def test_the_child_gets_the_kept_pairs_and_the_warm_up_data(
    client: TestClient, data: SimpleNamespace, kept: Any, sessions: SessionFactory, settings: Settings,
    store: ArtifactStore,
) -> None:  # fmt: skip
    source = kept(PAIRS[:12])
    small = {"target_epsilon": 0.5, "expected_batch": 4}
    warm = {"warm_up": {**WARM_UP, "dataset": data.open}}
    body = request("dpft", data, rows_of_job=source, privacy=small, **warm)
    job = client.post("/v1/jobs", json=body).json()["id"]
    first = _task(sessions, settings, store, job)
    assert {kind: given.label for kind, given in first.inputs.items()} == {"warm_up_pairs": Label.PUBLIC}
    assert first.history["warm_up"]["id"] == data.open
    assert first.history["prompts"] is None
    without = client.post("/v1/jobs", json=request("nondpft", data, rows_of_job=source)).json()["id"]
    task = _task(sessions, settings, store, without)
    assert {kind: given.label for kind, given in task.inputs.items()} == {
        "dataset": Label.PRIVATE, "kept_pairs": Label.DP,
    }  # fmt: skip
    assert task.plan is None


@pytest.mark.parametrize("how", ["fail", "cancel", "late cancel"])
@pytest.mark.parametrize("recipe", ["jft", "dpft"])
def test_what_ends_before_the_accounted_stage_costs_nothing(
    client: TestClient, data: SimpleNamespace, sessions: SessionFactory, recipe: str, how: str
) -> None:
    warm = {"warm_up": {**WARM_UP, "dataset": data.open}}
    job = client.post("/v1/jobs", json=request(recipe, data, **warm)).json()["id"]
    with transaction(sessions) as session:
        first = session.query(Stage).filter_by(job_id=job, position=0).one().id
        lease = jobs.lease_stage(session, first, lease_seconds=60)
    assert lease
    assert client.get(f"/v1/datasets/{data.dataset}/budget").json()["epsilon_committed"] > 0
    with transaction(sessions) as session:
        if how == "fail":
            jobs.fail_stage(session, lease, code="stage_crashed", message="x", steps_taken=None)
        else:
            jobs.request_cancel(session, job)
    with transaction(sessions) as session:
        if how == "cancel":
            jobs.finish_cancel(session, job, steps_taken=0)
        elif how == "late cancel":
            jobs.finish_stage(session, lease, artifacts=[], inputs={}, metrics={}, steps_taken=None)
    budget = client.get(f"/v1/datasets/{data.dataset}/budget").json()
    assert (budget["epsilon_committed"], [entry["state"] for entry in budget["entries"]]) == (0, ["released"])


def test_a_failure_after_the_accounted_stage_leaves_its_charge(
    client: TestClient, data: SimpleNamespace, sessions: SessionFactory
) -> None:
    job = client.post("/v1/jobs", json=request("dpft", data)).json()["id"]
    for position, steps in ((0, 4), (1, None)):
        with transaction(sessions) as session:
            stage = session.query(Stage).filter_by(job_id=job, position=position).one().id
            lease = jobs.lease_stage(session, stage, lease_seconds=60)
            assert lease
            if steps:
                jobs.finish_stage(session, lease, artifacts=[], inputs={}, metrics={}, steps_taken=steps)
            else:
                jobs.fail_stage(session, lease, code="x", message="x", steps_taken=None)
    (entry,) = client.get(f"/v1/datasets/{data.dataset}/budget").json()["entries"]
    assert (entry["state"], entry["steps"]) == ("spent", 4)

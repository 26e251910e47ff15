"""Every recipe over HTTP to its end, on the tiny model; then what each one may release and what it was charged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from argon2 import PasswordHasher

from privcode.client import ApiError, Client
from privcode.db.models import ApiKey, Tenant, new_id
from privcode.db.session import make_sessions, transaction
from privcode.embedded import EmbeddedStack
from privcode.recipes import stages_of
from privcode.specs import JobSpec
from tests.e2e.conftest import MARKER, job_request, private_rows

ROWS = 24
# Two of the prompts are problems of private rows: these rows are what `rows_of_job` finds again.
SHARED = [row["problem"].replace(f" ({MARKER}, recipes)", "") for row in private_rows(2, salt="recipes")]
PROMPTS = [{"problem": problem} for problem in SHARED]
OPEN_PAIRS = [
    {"problem": f"Write a Python function that returns {n}.", "solution": f"def give():\n    return {n}\n"}
    for n in range(4)
]
LORA = {"rank": 1, "alpha": 1, "target_modules": ["q_proj", "v_proj"]}
UNPROTECTED = {"nondpft", "jft"}
SECTIONS = {
    "dpft": {"privacy", "sanitize"},
    "noevol": {"privacy", "sanitize"},
    "nondpft": {"boost"},
    "jft": {"privacy", "sanitize", "boost"},
}
_OPTIONAL = {"privacy", "sanitize", "synthesize", "round_trip", "boost", "prompts"}
WARM_UP = {"lora": LORA, "steps": 1, "batch": 2, "learning_rate": 1e-4, "seq_length": 128}


def rows() -> list[dict[str, str]]:
    """Private rows; the marker stands in no problem of the first two, which are public."""
    made = private_rows(ROWS, salt="recipes")
    return [row | {"problem": problem} for row, problem in zip(made, SHARED, strict=False)] + made[len(SHARED) :]


def request(recipe: str, data: SimpleNamespace, **over: Any) -> dict[str, Any]:
    whole = job_request(
        data.dataset,
        data.prompts,
        recipe=recipe,
        privacy={"target_epsilon": 2.0, "target_delta": 1e-5, "expected_batch": 4, "steps": 1},
        synthesize={"max_new_tokens": 64},
        evaluate={"limit": 1, "max_new_tokens": 16},
        audit={"canary_rate": int(recipe in WITH_CANARIES), "prompts": 2, "samples_per_prompt": 1, "max_new_tokens": 8},
    )
    whole["boost"] = whole["boost"] | {"steps": 1}
    used = SECTIONS.get(recipe, _OPTIONAL - ({"round_trip"} if recipe == "nopostprocess" else set()))
    return {name: value for name, value in whole.items() if name not in _OPTIONAL - used} | over


def wait(client: Client, job_id: str) -> dict[str, Any]:
    """The job when it has succeeded. Follows its events: asking again and again would take time from the workers."""
    for _ in client.follow(job_id):
        pass
    job = client.job(job_id)
    assert job["state"] == "succeeded", job["error"]
    return job


@pytest.fixture(scope="module")
def officer(stack: EmbeddedStack, client: Client) -> Client:
    """A client with the key of a privacy officer."""
    assert client.jobs(limit=1) is not None
    key = "pc_0ff1ce00_" + "a" * 48
    with transaction(make_sessions(stack._environment["PRIVCODE_DATABASE_URL"])) as session:
        session.add(
            ApiKey(
                id=new_id("key"), tenant_id=session.query(Tenant).one().id, prefix="0ff1ce00",
                key_hash=PasswordHasher().hash(key), role="privacy_officer",
            )
        )  # fmt: skip
    return Client(stack.url, key)


@pytest.fixture(scope="module")
def jobs(client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All jobs at once, so that they share the workers; the last one needs another's result."""

    def upload(name: str, content: list[dict[str, str]], **query: Any) -> str:
        path = tmp_path_factory.mktemp("uploads") / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        uploaded: str = client.upload_dataset(path, name=name, **query)["id"]
        return uploaded

    data = SimpleNamespace(
        dataset=upload("private", rows(), visibility="private", budget_epsilon=50.0),
        prompts=upload("prompts", PROMPTS, visibility="public", kind="prompts"),
        open=upload("open-pairs", OPEN_PAIRS, visibility="public"),
    )
    names = ("noast", "stable_lambda", "noevol", "nopostprocess", "dpft", "nondpft", "jft")
    submitted = {name: client.submit(request(name, data))["id"] for name in names}
    warm = request("privcode", data, warm_up={**WARM_UP, "dataset": data.open})
    submitted["warm_up"] = client.submit(warm)["id"]
    wait(client, submitted["noast"])
    limited = request("dpft", data, rows_of_job=submitted["noast"], audit={"canary_rate": 0})
    limited["privacy"] = limited["privacy"] | {"expected_batch": 1}
    submitted["rows_of_job"] = client.submit(limited)["id"]
    return {name: wait(client, job_id) for name, job_id in submitted.items()} | {"data": vars(data)}


# Asking models for canaries takes a process that loads them: with a junior, without one, and where nothing protects.
WITH_CANARIES = {"noast", "dpft", "nondpft", "jft"}
ALL = ["noast", "stable_lambda", "noevol", "nopostprocess", "dpft", "nondpft", "jft", "warm_up", "rows_of_job"]

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("name", ALL)
def test_every_stage_of_the_recipe_succeeds(jobs: Mapping[str, Any], name: str) -> None:
    job = jobs[name]
    spec = JobSpec.model_validate_json(json.dumps(job["spec"]))
    assert [(stage["name"], stage["state"]) for stage in job["stages"]] == [
        (stage.name, "succeeded") for stage in stages_of(spec)
    ]
    assert {stage["attempt"] for stage in job["stages"]} == {1}


@pytest.mark.parametrize("name", ALL)
def test_labels_decide_who_may_have_what(
    jobs: Mapping[str, Any], client: Client, officer: Client, tmp_path: Path, name: str
) -> None:
    job, labels = jobs[name], {}
    for one in client.artifacts(job["id"]):
        labels[one["kind"]] = one["label"]
    private = {kind for kind, label in labels.items() if label == "private"}
    if name in UNPROTECTED:
        assert private == set(labels)
        for read in (client.report_json, client.report_html):
            with pytest.raises(ApiError) as refused:
                read(job["id"])
            assert (refused.value.status, refused.value.code) == (403, "artifact_private")
    else:
        assert private == {"training_metrics"}
        assert {kind for kind, label in labels.items() if label == "public"} == (
            {"warm_adapter", "warm_model"} if name == "warm_up" else set()
        )
        assert client.report_json(job["id"]) == officer.report_json(job["id"])
    evaluation = next(one for one in client.artifacts(job["id"]) if one["kind"] == "evaluation")
    officer.download(evaluation["id"], tmp_path / "evaluation")
    assert json.loads((tmp_path / "evaluation").read_text())["scores"]


@pytest.mark.parametrize("name", sorted(UNPROTECTED))
def test_of_a_private_stage_members_see_that_it_ran_and_no_figure(
    jobs: Mapping[str, Any], client: Client, name: str
) -> None:
    job = jobs[name]
    assert [stage["metrics"] for stage in job["stages"]] == [{}] * len(job["stages"])
    assert {stage["progress"]["note"] for stage in job["stages"] if stage["progress"]} == {""}
    assert any("stay private" in warning for warning in job["warnings"])
    seen = json.dumps(list(client.events(job["id"])))
    for word in ("pass_at_1", "canaries_leaked", "examples", MARKER):
        assert word not in seen, word


def test_a_dp_stage_shows_its_figures(jobs: Mapping[str, Any]) -> None:
    for name in ("dpft", "noast"):
        metrics = {stage["name"]: stage["metrics"] for stage in jobs[name]["stages"]}
        assert metrics["sanitize"]["epsilon_spent"] > 0
        assert "pass_at_1_tuned" in metrics["evaluate"]


@pytest.mark.parametrize("name", [name for name in ALL if name != "nondpft"])
def test_plan_receipt_ledger_and_report_agree(
    jobs: Mapping[str, Any], client: Client, officer: Client, name: str
) -> None:
    job = jobs[name]
    report = officer.report_json(job["id"])
    receipt = report["guarantee"]["receipt"]
    assert receipt["plan"] == job["plan"]
    own = len(SHARED) if name == "rows_of_job" else ROWS
    canaries = 5 if name in WITH_CANARIES else 0
    assert (job["plan"]["records"], receipt["canaries"]) == (own + canaries, canaries)
    assert report["audit"]["result"]["injected"] == (name in WITH_CANARIES)
    (entry,) = [one for one in client.budget(job["dataset"])["entries"] if one["job"] == job["id"]]
    assert (entry["state"], entry["steps"], entry["sample_rate"]) == (
        "spent", receipt["steps_taken"], job["plan"]["sample_rate"],
    )  # fmt: skip
    assert report["guarantee"]["covers"] == ("last_training" if name == "jft" else "released")


def test_without_a_mechanism_nothing_is_planned_and_nothing_charged(
    jobs: Mapping[str, Any], client: Client, officer: Client
) -> None:
    job = jobs["nondpft"]
    assert (job["plan"], job["prompts"], job["spec"]["privacy"]) == (None, None, None)
    assert job["id"] not in {entry["job"] for entry in client.budget(job["dataset"])["entries"]}
    assert any("NO privacy guarantee" in warning for warning in job["warnings"])
    report = officer.report_json(job["id"])
    assert (report["guarantee"]["covers"], report["guarantee"]["receipt"]) == ("nothing", None)
    assert "NO PRIVACY GUARANTEE" in officer.report_html(job["id"]).split('class="tiles"')[0]


def test_the_report_of_a_second_training_does_not_cover_the_first(jobs: Mapping[str, Any], officer: Client) -> None:
    assert "DOES NOT COVER" in officer.report_html(jobs["jft"]["id"]).split('class="tiles"')[0]


def test_the_masked_rows_hold_no_canary_that_has_a_form(
    jobs: Mapping[str, Any], officer: Client, tmp_path: Path
) -> None:
    job = jobs["jft"]
    (masked,) = [one for one in officer.artifacts(job["id"]) if one["kind"] == "masked"]
    officer.download(masked["id"], tmp_path / "masked")
    text = (tmp_path / "masked").read_text()
    assert len(text.splitlines()) == ROWS + 5
    assert "@example.com" not in text
    assert "<EMAIL>" in text


def test_schedules(jobs: Mapping[str, Any]) -> None:
    found = {name: jobs[name]["spec"]["sanitize"]["privsa"]["schedule"] for name in ALL if name != "nondpft"}
    assert found == {
        "noast": "off", "stable_lambda": "constant", "noevol": "exponential", "nopostprocess": "exponential",
        "dpft": "off", "jft": "off", "warm_up": "exponential", "rows_of_job": "off",
    }  # fmt: skip


def test_reports_tell_of_filters_warm_up_and_limited_rows(jobs: Mapping[str, Any], client: Client) -> None:
    unfiltered = client.report_json(jobs["nopostprocess"]["id"])["candidates"]
    funnel = unfiltered["funnel"]
    assert (funnel["ran"], funnel["described"], unfiltered["tau"]) == (None, None, None)
    assert funnel["candidates"] == funnel["kept"] + funnel["lost"].get("no_code", 0) == len(PROMPTS)
    assert client.report_json(jobs["warm_up"]["id"])["warm_up"]["name"] == "open-pairs"
    assert "open-pairs" in client.report_html(jobs["warm_up"]["id"])
    assert client.report_json(jobs["rows_of_job"]["id"])["rows_of_job"] == jobs["noast"]["id"]
    assert client.report_json(jobs["dpft"]["id"])["candidates"] is None


def test_warm_up_is_what_sanitize_starts_from(jobs: Mapping[str, Any], client: Client, tmp_path: Path) -> None:
    made = {one["kind"]: one for one in client.artifacts(jobs["warm_up"]["id"])}
    warm = made["warm_model"]["sha256"]
    for kind in ("junior_adapter", "junior_model"):
        assert made[kind]["inputs"]["warm_model"] == warm
    assert "warm_model" not in made["premium_adapter"]["inputs"]
    client.download(made["junior_adapter"]["id"], tmp_path / "adapter.tar")
    assert b'"base_model_name_or_path": "warm_model"' in (tmp_path / "adapter.tar").read_bytes()


def test_nothing_private_gets_out(jobs: Mapping[str, Any], client: Client, tmp_path: Path) -> None:
    for name in ALL:
        seen = json.dumps(jobs[name]) + json.dumps(list(client.events(jobs[name]["id"])))
        for one in client.artifacts(jobs[name]["id"]):
            if one["label"] != "private" and one["bytes"] < 1 << 20:
                client.download(one["id"], tmp_path / one["kind"])
                seen += (tmp_path / one["kind"]).read_bytes().decode("latin-1")
        assert MARKER not in seen, name

"""The whole recipe over HTTP, as a user runs it; then every promise that can be checked from outside."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from privcode.client import ApiError, Client
from privcode.embedded import EmbeddedStack
from privcode.recipes import PRIVCODE
from tests.e2e.conftest import MARKER, job_request, private_rows

PROMPTS = [{"problem": f"Write a Python function that multiplies its argument by {n}."} for n in range(6)]


def wait_for(what: str, condition: Callable[[], Any], *, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds:.0f} s")


def stage_files(stack: EmbeddedStack, job_id: str) -> list[dict[str, Any]]:
    """What the children of a job were given, as far as their folders still exist."""
    found = []
    for path in (stack.volume / "work").glob("*/attempt-*/stage.json"):
        try:
            task = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        if task["job_id"] == job_id:
            found.append(task)
    return found


@pytest.fixture(scope="module")
def finished(stack: EmbeddedStack, client: Client, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("uploads")
    ids = {}
    for name, rows, query in (
        ("dataset", private_rows(60, salt="recipe"), {"visibility": "private", "budget_epsilon": 3.2}),
        ("prompts", PROMPTS, {"visibility": "public", "kind": "prompts"}),
    ):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        ids[name] = client.upload_dataset(path, name=name, **query)["id"]
    job = client.submit(job_request(ids["dataset"], ids["prompts"]))
    task = wait_for("the first stage's child", lambda: stage_files(stack, job["id"]))[0]
    events = list(client.follow(job["id"]))
    return SimpleNamespace(id=job["id"], **ids, task=task, events=events, job=client.job(job["id"]))


def _download(client: Client, job_id: str, kind: str, folder: Path) -> Path:
    (artifact,) = [one for one in client.artifacts(job_id) if one["kind"] == kind]
    path = folder / kind
    client.download(artifact["id"], path)
    return path


def test_every_stage_succeeds(finished: SimpleNamespace) -> None:
    assert finished.job["error"] is None, finished.job["error"]
    assert finished.job["state"] == "succeeded"
    assert [(stage["name"], stage["state"]) for stage in finished.job["stages"]] == [
        (stage.name, "succeeded") for stage in PRIVCODE
    ]
    assert [event["sequence"] for event in finished.events] == list(range(1, len(finished.events) + 1))
    assert finished.events[-1]["type"] == "job.succeeded"
    assert {event["data"]["stage"] for event in finished.events if event["type"] == "stage.progress"} >= {
        "sanitize",
        "synthesize",
        "execute",
        "round_trip",
    }


def test_target_epsilon_is_one_number_from_request_to_report(
    finished: SimpleNamespace, client: Client, tmp_path: Path
) -> None:
    receipt = json.loads(_download(client, finished.id, "privacy_receipt", tmp_path).read_text())
    assert finished.job["spec"]["privacy"]["target_epsilon"] == 3.1415, "the row"
    assert finished.task["spec"]["privacy"]["target_epsilon"] == 3.1415, "the child's spec"
    assert finished.task["plan"] == finished.job["plan"] == receipt["plan"]
    assert receipt["plan"]["target_epsilon"] == 3.1415, "the receipt"
    report = client.report_json(finished.id)
    assert json.dumps(receipt["plan"]["target_epsilon"]) in json.dumps(report)
    assert _find(report, "target_epsilon") == {3.1415}, "the report"
    assert "3.1415" in client.report_html(finished.id)


def _find(value: Any, key: str) -> set[Any]:
    if isinstance(value, dict):
        below = set().union(*(_find(item, key) for item in value.values()))
        return below | ({value[key]} if key in value and not isinstance(value[key], dict | list) else set())
    return set().union(*(_find(item, key) for item in value)) if isinstance(value, list) else set()


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(_keys(item) for item in value.values()))
    return set().union(*(_keys(item) for item in value)) if isinstance(value, list) else set()


def test_the_receipt_the_ledger_and_the_budget_agree(finished: SimpleNamespace, client: Client, tmp_path: Path) -> None:
    receipt = json.loads(_download(client, finished.id, "privacy_receipt", tmp_path).read_text())
    budget = client.budget(finished.dataset)
    (entry,) = budget["entries"]
    assert receipt["steps_taken"] == receipt["plan"]["steps"] == entry["steps"] == 3
    assert (entry["state"], entry["noise_multiplier"]) == ("spent", receipt["plan"]["noise_multiplier"])
    assert receipt["epsilon_spent"] == pytest.approx(budget["epsilon_spent"])
    assert 3.0 < receipt["epsilon_spent"] <= 3.1415
    assert budget["epsilon_left"] == pytest.approx(3.2 - budget["epsilon_spent"])
    # 60 rows and five canaries planted twice.
    assert (receipt["plan"]["records"], receipt["canaries"]) == (70, 10)
    assert receipt["sampling_seed"] == "secret"


def test_the_funnel_loses_nothing_unexplained(finished: SimpleNamespace, client: Client) -> None:
    funnel = client.report_json(finished.id)["candidates"]["funnel"]
    assert funnel["candidates"] == 6
    assert funnel["candidates"] == funnel["kept"] + sum(funnel["lost"].values())
    assert funnel["candidates"] >= funnel["ran"] >= funnel["described"] >= funnel["kept"] > 0


def test_nothing_private_gets_out(
    finished: SimpleNamespace, client: Client, stack: EmbeddedStack, tmp_path: Path
) -> None:
    labels = {one["kind"]: one["label"] for one in client.artifacts(finished.id)}
    assert {kind for kind, label in labels.items() if label == "private"} == {"training_metrics"}
    seen = json.dumps(finished.events) + json.dumps(finished.job) + json.dumps(client.report_json(finished.id))
    seen += client.report_html(finished.id)
    for log in (stack.home / "logs").iterdir():
        seen += log.read_text()
    for one in client.artifacts(finished.id):
        if one["label"] == "private":
            with pytest.raises(ApiError, match="privacy officer"):
                client.download(one["id"], tmp_path / "never")
            assert not (tmp_path / "never").exists()
            continue
        client.download(one["id"], tmp_path / one["kind"])
        seen += (tmp_path / one["kind"]).read_bytes().decode("latin-1")
    assert MARKER not in seen
    assert not [key for key in _keys(client.report_json(finished.id)) if "loss" in key]
    training_log = next(one for one in client.artifacts(finished.id) if one["kind"] == "training_metrics")
    stored = stack.volume / "artifacts" / training_log["sha256"][:2] / training_log["sha256"]
    steps = [json.loads(line) for line in (stored / "training_metrics.jsonl").read_text().splitlines()]
    losses = [str(step["loss"]) for step in steps if step["loss"] is not None]
    assert losses
    assert not [loss for loss in losses if loss[:8] in seen]


def test_the_work_folders_of_finished_stages_are_gone(finished: SimpleNamespace, stack: EmbeddedStack) -> None:
    assert stage_files(stack, finished.id) == []


def test_the_report_page_may_run_no_script(finished: SimpleNamespace, stack: EmbeddedStack) -> None:
    answer = httpx.get(
        f"{stack.url}/v1/jobs/{finished.id}/report",
        headers={"Authorization": f"Bearer {stack.admin_key}", "Accept": "text/html"},
    )
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "script" not in answer.headers["content-security-policy"]


def test_a_second_job_that_does_not_fit_is_refused(finished: SimpleNamespace, client: Client) -> None:
    before = len(client.jobs())
    with pytest.raises(ApiError) as refused:
        client.submit(job_request(finished.dataset, finished.prompts))
    assert (refused.value.code, refused.value.field) == ("budget_exceeded", "privacy.target_epsilon")
    assert len(client.jobs()) == before


@pytest.fixture
def long_job(client: Client, upload: Any) -> SimpleNamespace:
    """A job whose first stage takes far longer than any test."""
    dataset = upload(private_rows(60, salt=str(time.monotonic())), visibility="private", budget_epsilon=4.0)
    prompts = upload([{"problem": f"Say {time.monotonic()}."}], visibility="public", kind="prompts")
    request = job_request(dataset, prompts)
    request["privacy"] |= {"steps": 5000, "expected_batch": 30}
    return SimpleNamespace(id=client.submit(request)["id"], dataset=dataset)


def _step(client: Client, job_id: str) -> int:
    progress = client.job(job_id)["stages"][0]["progress"]
    return progress["done"] if progress else 0


def _children(stack: EmbeddedStack) -> set[int]:
    """Processes that run a stage of this stack."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if b"services.trainer.stage" in command and str(stack.volume).encode() in command:
            found.add(int(path.parent.name))
    return found


def test_cancel_stops_the_child_and_charges_what_was_spent(
    client: Client, stack: EmbeddedStack, long_job: SimpleNamespace
) -> None:
    wait_for("a step", lambda: _step(client, long_job.id) >= 2)
    asked = time.monotonic()
    assert client.cancel(long_job.id)["state"] == "cancelling"
    wait_for("the end", lambda: client.job(long_job.id)["state"] == "cancelled", seconds=20)
    wait_for("the child's end", lambda: not _children(stack), seconds=5)
    print(f"cancelled after {time.monotonic() - asked:.1f} s")
    budget = client.budget(long_job.dataset)
    (entry,) = budget["entries"]
    assert entry["state"] == "spent"
    assert 2 <= entry["steps"] < 5000
    assert 0 < budget["epsilon_spent"] == budget["epsilon_committed"] < 3.1415


def test_a_killed_child_fails_the_job_in_plain_words(
    client: Client, stack: EmbeddedStack, long_job: SimpleNamespace
) -> None:
    wait_for("a step", lambda: _step(client, long_job.id) >= 2)
    for pid in _children(stack):
        os.kill(pid, signal.SIGKILL)
    job = wait_for("the end", lambda: _ended(client, long_job.id), seconds=20)
    assert (job["state"], job["error"]["code"]) == ("failed", "stage_killed")
    assert [stage["state"] for stage in job["stages"]] == ["failed"] + ["skipped"] * 9
    assert client.budget(long_job.dataset)["entries"][0]["steps"] >= 2


def _ended(client: Client, job_id: str) -> dict[str, Any] | None:
    job = client.job(job_id)
    return job if job["state"] in ("succeeded", "failed", "cancelled") else None

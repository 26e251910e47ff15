"""The HTTP API on a real database and broker: objects, errors, idempotency, roles. Workers are not running here."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from api.app import create_app
from privcode.artifacts import ArtifactStore
from privcode.db.models import Artifact, Base, Dataset, Job, LedgerEntry, Stage, new_id
from privcode.db.session import SessionFactory, transaction
from privcode.settings import Settings

ROWS = [
    {"problem": f"Add {n} to a number.", "solution": f"def add(x):\n    return x + {n}\n", "lang": "python"}
    for n in range(50)
]


def _jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _upload(client: TestClient, content: bytes, **query: Any) -> Response:
    return client.post("/v1/datasets", params={"name": "test", "visibility": "private", **query}, content=content)


def _archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _assert_problem(answer: Response, status: int, code: str, field: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json", problem
    assert (answer.status_code, problem["code"], problem["field"]) == (status, code, field), problem
    assert problem["detail"]
    return problem


def _count(sessions: SessionFactory) -> dict[str, int]:
    with transaction(sessions) as session:
        return {model.__tablename__: session.query(model).count() for model in (Dataset, Job, LedgerEntry, Artifact)}


@pytest.mark.parametrize("key", [None, "", "nonsense", "pc_00000000_" + "0" * 48])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/datasets", "/v1/models", "/v1/artifacts/art_x/content"])
def test_without_a_key_there_is_nothing(client: TestClient, path: str, key: str | None) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {"Authorization": ""}
    answer = client.get(path, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_every_route_but_health_wants_a_key(client: TestClient) -> None:
    open_paths = {"/healthz", "/readyz"}
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            answer = client.request(method, path.replace("{", "").replace("}", ""), headers={"Authorization": ""})
            assert (answer.status_code == 401) is (path not in open_paths), (method, path)


def test_upload_and_read_back(client: TestClient) -> None:
    made = _upload(client, _jsonl(ROWS), budget_epsilon=3.1415, budget_delta=1e-6)
    assert made.status_code == 201
    dataset = made.json()
    assert (dataset["object"], dataset["rows"], dataset["visibility"]) == ("dataset", 50, "private")
    assert dataset["budget"]["epsilon"] == dataset["budget"]["epsilon_left"] == 3.1415
    assert client.get(f"/v1/datasets/{dataset['id']}").json() == dataset
    assert client.get("/v1/datasets", params={"limit": 1}).json()["data"] == [dataset]
    assert client.get(f"/v1/datasets/{dataset['id']}/budget").json()["entries"] == []


def test_units_are_counted_and_planned_with(client: TestClient, tenant: SimpleNamespace) -> None:
    rows = [{**row, "unit_id": f"author {number % 30}"} for number, row in enumerate(ROWS)]
    made = _upload(client, _jsonl(rows)).json()
    assert (made["rows"], made["units"], made["summary"]["units"]) == (50, 30, 30)
    assert client.get(f"/v1/datasets/{made['id']}").json() == made
    assert _upload(client, _jsonl(ROWS)).json()["units"] is None
    body = {
        **tenant.request, "dataset": made["id"], "audit": {"canary_rate": 2},
        "privacy": {"expected_batch": 16, "max_records_per_unit": 3},
    }  # fmt: skip
    plan = client.post("/v1/jobs/estimate", json=body).json()["plan"]
    assert (plan["unit"], plan["records"], plan["units"], plan["max_records_per_unit"]) == ("unit_id", 60, 40, 3)
    assert plan["sample_rate"] == 16 / 40
    body["privacy"] = {"expected_batch": 41}
    refused = client.post("/v1/jobs/estimate", json=body)
    _assert_problem(refused, 422, "batch_exceeds_units", "privacy.expected_batch")


def test_a_file_of_an_archive_can_be_the_unit(client: TestClient) -> None:
    source = b'def f(x):\n    """Add %d to x, whatever x may be."""\n    result = x + %d\n    return result\n\n'
    two = source % (1, 1) + (source % (2, 2)).replace(b"def f", b"def g")
    archive = _archive((tarfile.TarInfo("a.py"), two), (tarfile.TarInfo("b.py"), source % (3, 3)))
    query = {"format": "archive", "min_solution_chars": 20}
    made = _upload(client, archive, unit="file", **query).json()
    assert (made["rows"], made["units"]) == (3, 2)
    assert _upload(client, archive, **query).json()["units"] is None
    _assert_problem(_upload(client, _jsonl(ROWS), unit="file"), 422, "invalid_value", "unit")


def test_the_same_private_rows_have_one_budget(client: TestClient) -> None:
    first = _upload(client, _jsonl(ROWS)).json()
    again = _assert_problem(_upload(client, _jsonl(ROWS)), 409, "dataset_exists", "file")
    assert again["value"] == first["id"]


def _linked(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("link.py")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


BAD_UPLOADS = {
    "empty": (b"", {}, "empty_dataset"),
    "not json": (b"hello\n", {}, "not_json"),
    "not an object": (b"[1]\n", {}, None),
    "wrong columns": (_jsonl([{"question": "a", "answer": "b"}]), {}, "wrong_columns"),
    "no solution": (_jsonl([{"problem": "a", "lang": "python"}]), {}, "missing_solution"),
    "empty solution": (_jsonl([{"problem": "a", "solution": " ", "lang": "python"}]), {}, "missing_solution"),
    "not utf-8": (b'{"problem": "\xff", "solution": "x"}\n', {}, "not_utf8"),
    "long line": (b'{"problem": "' + b"a" * (2 << 20) + b'", "solution": "x"}\n', {}, "line_too_long"),
    "path outside": (_archive((tarfile.TarInfo("../evil.py"), b"x = 1")), {"format": "archive"}, "archive_path"),
    "absolute path": (_archive((tarfile.TarInfo("/evil.py"), b"x = 1")), {"format": "archive"}, "archive_path"),
    "symlink": (_archive((_linked(tarfile.SYMTYPE), b"")), {"format": "archive"}, "archive_link"),
    "hard link": (_archive((_linked(tarfile.LNKTYPE), b"")), {"format": "archive"}, "archive_link"),
    "bomb": (_archive((tarfile.TarInfo("a.py"), bytes(80 << 20))), {"format": "archive"}, None),
    "no archive": (gzip.compress(b"no tar at all" * 100), {"format": "archive"}, "not_an_archive"),
    "cut short": (
        _archive((tarfile.TarInfo("a.py"), os.urandom(5000)))[:-2000],
        {"format": "archive"},
        "archive_corrupt",
    ),
    "nothing to mine": (_archive((tarfile.TarInfo("a.py"), b"x = 1")), {"format": "archive"}, "empty_dataset"),
}


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_bad_uploads_store_nothing(client: TestClient, sessions: SessionFactory, settings: Settings, name: str) -> None:
    content, query, code = BAD_UPLOADS[name]
    before = _count(sessions)
    answer = _upload(client, content, **query)
    problem = answer.json()
    assert 400 <= answer.status_code < 500
    assert problem["code"] != "ingest_crashed"
    assert code is None or problem["code"] == code, problem
    assert problem["field"]
    assert "value" in problem
    assert _count(sessions) == before
    assert list(settings.artifacts_dir.iterdir()) == [], "no file is left either"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"visibility": "secret"}, "visibility"),
        ({"budget_epsilon": 0}, "budget_epsilon"),
        ({"budget_epsilon": -1}, "budget_epsilon"),
        ({"budget_epsilon": "nan"}, "budget_epsilon"),
        ({"budget_epsilon": "inf"}, "budget_epsilon"),
        ({"budget_epsilon": "much"}, "budget_epsilon"),
        ({"budget_delta": 1}, "budget_delta"),
        ({"format": "zip"}, "format"),
        ({"unit": "person"}, "unit"),
        ({"colour": "blue"}, "colour"),
        ({"name": ""}, "name"),
    ],
)
def test_bad_upload_parameters(client: TestClient, query: dict[str, Any], field: str) -> None:
    problem = _upload(client, _jsonl(ROWS), **query).json()
    assert problem["field"] == field
    assert str(next(iter(query.values()))) in str(problem["value"])


def test_an_upload_over_the_limit(tenant: SimpleNamespace, settings: Settings) -> None:
    small = settings.model_copy(update={"max_upload_bytes": 1000})
    with TestClient(create_app(small), headers={"Authorization": f"Bearer {tenant.key}"}) as client:
        _assert_problem(_upload(client, b"x" * 1001), 413, "upload_too_large", "file")


BAD_JOBS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "epsilon 0": ({"privacy": {"target_epsilon": 0}}, 422, "invalid_value", "privacy.target_epsilon"),
    "epsilon negative": ({"privacy": {"target_epsilon": -1}}, 422, "invalid_value", "privacy.target_epsilon"),
    "epsilon text": ({"privacy": {"target_epsilon": "4"}}, 422, "invalid_value", "privacy.target_epsilon"),
    "delta 1": ({"privacy": {"target_delta": 1}}, 422, "invalid_value", "privacy.target_delta"),
    "delta 0": ({"privacy": {"target_delta": 0}}, 422, "invalid_value", "privacy.target_delta"),
    "steps 0": ({"privacy": {"steps": 0}}, 422, "invalid_value", "privacy.steps"),
    "batch over n": ({"privacy": {"expected_batch": 5000}}, 422, "batch_exceeds_records", "privacy.expected_batch"),
    "unknown model": ({"sanitize": {"model": "gpt-17"}}, 422, "unknown_model", "sanitize.model"),
    "path as model": ({"boost": {"model": "local/../../etc"}}, 422, "unknown_model", "boost.model"),
    "encoder as junior": ({"sanitize": {"model": "roberta-large"}}, 422, "wrong_model_kind", "sanitize.model"),
    "unknown field": ({"privacy": {"epsilon": 4}}, 422, "unknown_field", "privacy.epsilon"),
    "unknown top field": ({"colour": "blue"}, 422, "unknown_field", "colour"),
    "unknown preset": ({"preset": "best"}, 422, "unknown_preset", "preset"),
    "tau": ({"round_trip": {"tau": 1.5}}, 422, "invalid_value", "round_trip.tau"),
    "tau negative": ({"round_trip": {"tau": -1.01}}, 422, "invalid_value", "round_trip.tau"),
    "section as text": ({"privacy": "much"}, 422, "invalid_value", "privacy"),
    "no dataset": ({"dataset": "ds_nowhere"}, 404, "dataset_not_found", "dataset"),
    "null dataset": ({"dataset": None}, 422, "invalid_value", "dataset"),
    "budget": ({"privacy": {"target_epsilon": 4.5}}, 409, "budget_exceeded", "privacy.target_epsilon"),
}


@pytest.mark.parametrize("name", BAD_JOBS)
def test_bad_jobs_cost_nothing(
    client: TestClient, tenant: SimpleNamespace, sessions: SessionFactory, name: str
) -> None:
    over, status, code, field = BAD_JOBS[name]
    before = _count(sessions)
    problem = _assert_problem(client.post("/v1/jobs", json={**tenant.request, **over}), status, code, field)
    value = over
    for part in field.split("."):
        value = value[part]
    assert problem["value"] == value
    assert _count(sessions) == before


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_epsilon_that_is_no_number(client: TestClient, tenant: SimpleNamespace, literal: str) -> None:
    body = json.dumps({**tenant.request, "privacy": {"target_epsilon": float(literal.replace("Infinity", "inf"))}})
    assert literal in body
    answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("not_json", "invalid_value")


@pytest.mark.parametrize("body", [b"", b"hello", b"{", b"[1, 2]", b'"text"', b"\xff\xfe"])
def test_a_body_that_is_no_json_object(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == "body"


def test_private_prompts_are_refused(client: TestClient, tenant: SimpleNamespace, sessions: SessionFactory) -> None:
    problems = [{"problem": row["problem"]} for row in ROWS]
    private = _upload(client, _jsonl(problems), kind="prompts").json()["id"]
    before = _count(sessions)
    for prompts in (private, tenant.dataset):
        answer = client.post("/v1/jobs", json={**tenant.request, "prompts": prompts})
        _assert_problem(answer, 422, "prompts_private", "prompts")
    assert _count(sessions) == before


def test_delta_above_one_over_n_warns(client: TestClient, tenant: SimpleNamespace) -> None:
    small = _upload(client, _jsonl(ROWS), budget_delta=0.1).json()["id"]
    privacy = {"target_epsilon": 1.0, "target_delta": 0.05}
    body = {**tenant.request, "dataset": small, "privacy": privacy}
    assert any("privacy.target_delta: 0.05" in text for text in client.post("/v1/jobs", json=body).json()["warnings"])


def test_an_estimate_reserves_nothing(client: TestClient, tenant: SimpleNamespace, sessions: SessionFactory) -> None:
    before = _count(sessions)
    estimate = client.post("/v1/jobs/estimate", json=tenant.request).json()
    plan = estimate["plan"]
    assert plan["target_epsilon"] == 4.0
    assert plan["sample_rate"] == plan["expected_batch"] / plan["records"]
    # Rank 1 on q (576 + 576) and v (576 + 192) in 30 layers.
    assert estimate["trainable_parameters"] == 30 * (576 + 576 + 576 + 192)
    ratio = plan["expected_batch"] / (plan["noise_multiplier"] * estimate["trainable_parameters"] ** 0.5)
    assert estimate["signal_to_noise"] == pytest.approx(ratio)
    assert estimate["fits"] is True
    assert estimate["budget"]["epsilon_left"] == pytest.approx(4.0 - estimate["budget"]["epsilon_committed"])
    over = client.post("/v1/jobs/estimate", json={**tenant.request, "privacy": {"target_epsilon": 4.5}}).json()
    assert (over["fits"], over["budget"]["epsilon_left"]) == (False, 4.0)
    assert _count(sessions) == before


def test_one_idempotency_key_one_job(client: TestClient, tenant: SimpleNamespace, sessions: SessionFactory) -> None:
    headers = {"Idempotency-Key": "a-key"}
    first = client.post("/v1/jobs", json=tenant.request, headers=headers)
    again = client.post("/v1/jobs", json=tenant.request, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert _count(sessions)["job"] == _count(sessions)["ledger_entry"] == 1
    other = client.post("/v1/jobs", json={**tenant.request, "privacy": {"steps": 2}}, headers=headers)
    _assert_problem(other, 409, "idempotency_key_reused", "Idempotency-Key")


def test_a_refused_request_does_not_use_its_key_up(client: TestClient, tenant: SimpleNamespace) -> None:
    headers = {"Idempotency-Key": "a-key"}
    bad = {**tenant.request, "privacy": {"target_epsilon": 4.5}}
    assert client.post("/v1/jobs", json=bad, headers=headers).status_code == 409
    assert client.post("/v1/jobs", json=tenant.request, headers=headers).status_code == 201


def test_target_epsilon_is_the_same_number_everywhere(
    client: TestClient, tenant: SimpleNamespace, sessions: SessionFactory
) -> None:
    job = client.post("/v1/jobs", json={**tenant.request, "privacy": {"target_epsilon": 3.1415}}).json()
    assert job["spec"]["privacy"]["target_epsilon"] == job["plan"]["target_epsilon"] == 3.1415
    with transaction(sessions) as session:
        row = session.get_one(Job, job["id"])
        assert row.spec["privacy"]["target_epsilon"] == row.plan["target_epsilon"] == 3.1415


def test_cancel_and_events(client: TestClient, tenant: SimpleNamespace) -> None:
    job = client.post("/v1/jobs", json=tenant.request).json()
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    _assert_problem(client.post(f"/v1/jobs/{job['id']}/cancel"), 409, "job_ended", "job")
    page = client.get(f"/v1/jobs/{job['id']}/events", params={"limit": 3}).json()
    assert [event["sequence"] for event in page["data"]] == [1, 2, 3]
    assert page["has_more"] is True
    stream = client.get(
        f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "3"}
    ).text
    lines = stream.splitlines()
    assert lines[0] == "id: 4"
    assert "event: job.cancelled" in lines
    _assert_problem(client.get(f"/v1/jobs/{job['id']}/report"), 404, "report_not_ready", "job")


def test_private_artifacts_stay(
    client: TestClient, tenant: SimpleNamespace, sessions: SessionFactory, settings: Settings
) -> None:
    job = client.post("/v1/jobs", json=tenant.request).json()["id"]
    ids = {}
    for label in ("public", "dp", "private"):
        folder = ArtifactStore(settings.artifacts_dir).staging()
        (folder / "file.txt").write_text(label)
        stored = ArtifactStore(settings.artifacts_dir).put(folder)
        with transaction(sessions) as session:
            stage = session.query(Stage).filter_by(job_id=job, position=0).one()
            artifact = Artifact(
                id=new_id("art"), tenant_id=tenant.id, kind=f"test_{label}", label=label, sha256=stored.sha256,
                bytes=stored.bytes, files=list(stored.files), inputs={}, stage_id=stage.id, job_id=job,
            )  # fmt: skip
            session.add(artifact)
            ids[label] = artifact.id
    for label in ("public", "dp"):
        assert client.get(f"/v1/artifacts/{ids[label]}/content").text == label
    refused = client.get(f"/v1/artifacts/{ids['private']}/content")
    _assert_problem(refused, 403, "artifact_private", "artifact")
    listed = {item["kind"]: item["label"] for item in client.get(f"/v1/jobs/{job}/artifacts").json()["data"]}
    assert listed == {"test_public": "public", "test_dp": "dp", "test_private": "private"}
    (settings.artifacts_dir / stored.sha256[:2] / stored.sha256 / "file.txt").write_text("changed")
    with transaction(sessions) as session:
        session.get_one(Artifact, ids["private"]).label = "dp"
    assert client.get(f"/v1/artifacts/{ids['private']}/content").json()["code"] == "artifact_corrupt"


def test_lists_go_on_where_they_stopped(client: TestClient, tenant: SimpleNamespace) -> None:
    made = [client.post("/v1/jobs", json={**tenant.request, "privacy": {"target_epsilon": 0.5}}).json()["id"]
            for _ in range(3)]  # fmt: skip
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    rest = client.get("/v1/jobs", params={"limit": 2, "after": first["data"][-1]["id"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert [job["id"] for job in first["data"] + rest["data"]] == made[::-1]


def test_readiness_tells_what_is_missing(client: TestClient) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"database": "ok", "broker": "ok", "sandbox": "unreachable"}
    assert client.get("/healthz").status_code == 200


def test_every_table_is_emptied_between_tests(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        for mapper in Base.registry.mappers:
            assert session.query(mapper.class_).count() == 0

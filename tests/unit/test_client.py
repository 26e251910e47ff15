"""The client against a server that loses answers, breaks streams and is not available for a moment."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privcode.client import ApiError, Client, Unreachable
from privcode.sse import ServerSentEvent, parse_events
from tests.api_stub import Answer, ApiStub, event, job, listing, running_stub

EVENTS = "/v1/jobs/job_1/events"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiStub]:
    with running_stub() as running:
        yield running


@pytest.fixture
def stub(server: ApiStub) -> ApiStub:
    server.clear()
    return server


@pytest.fixture
def client(stub: ApiStub) -> Iterator[Client]:
    with Client(stub.url, "pc_a_b", patience_s=5) as client:
        yield client


def test_a_submission_whose_answer_was_lost_is_repeated_with_the_same_key(stub: ApiStub, client: Client) -> None:
    stub.on("POST", "/v1/jobs", Answer(lost=True), Answer.problem(503, code="x"), Answer.json(job(), status=201))
    assert client.submit({"preset": "demo"})["id"] == "job_1"
    sent = stub.requests("POST", "/v1/jobs")
    assert len(sent) == 3
    assert len({one.headers["idempotency-key"] for one in sent}) == 1
    assert {one.body for one in sent} == {b'{"preset":"demo"}'}
    client.submit({"preset": "demo"})
    assert stub.seen[-1].headers["idempotency-key"] != sent[0].headers["idempotency-key"]


def test_every_request_carries_the_key(stub: ApiStub, client: Client) -> None:
    stub.on("GET", "/v1/jobs/job_1", Answer.json(job()))
    client.job("job_1")
    assert stub.seen[0].headers["authorization"] == "Bearer pc_a_b"


def test_upload_sends_the_file_as_it_is(stub: ApiStub, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "code.tar.gz"
    path.write_bytes(bytes(range(256)) * 20_000)
    dataset = {"object": "dataset", "id": "ds_1"}
    stub.on("POST", "/v1/datasets", Answer(lost=True), Answer.json(dataset, status=201))
    answer = client.upload_dataset(
        path, name="a b&c", visibility="private", format="archive", budget_epsilon=2.5, max_solution_chars=700
    )
    assert answer["id"] == "ds_1"
    first, second = stub.requests("POST", "/v1/datasets")
    assert first.body == second.body == path.read_bytes()
    assert second.headers["content-length"] == str(path.stat().st_size)
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert dict(parse_qsl(second.query)) == {
        "name": "a b&c", "visibility": "private", "format": "archive", "kind": "pairs", "budget_epsilon": "2.5",
        "max_solution_chars": "700",
    }  # fmt: skip


def test_a_problem_becomes_an_error_with_its_fields(stub: ApiStub, client: Client) -> None:
    stub.on(
        "POST", "/v1/jobs",
        Answer.problem(422, code="invalid_value", detail="tau: too high", field="round_trip.tau", value=2),
    )  # fmt: skip
    with pytest.raises(ApiError) as refused:
        client.submit({})
    error = refused.value
    assert (error.status, error.code, error.field, error.value) == (422, "invalid_value", "round_trip.tau", 2)
    assert error.message == "tau: too high"
    assert len(stub.seen) == 1, "a refusal is not tried again"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"detail": "no problem+json"}'])
def test_an_error_that_is_no_problem_still_tells_its_status(stub: ApiStub, client: Client, body: bytes) -> None:
    stub.on("GET", "/v1/jobs/job_1", Answer(status=500, body=[body], content_type="text/html"))
    with pytest.raises(ApiError, match="500") as refused:
        client.job("job_1")
    assert refused.value.code == "http_500"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"object": "model"}', b"\xff"])
def test_another_service_is_not_taken_for_ours(stub: ApiStub, client: Client, body: bytes) -> None:
    stub.on("GET", "/v1/jobs/job_1", Answer(body=[body]))
    with pytest.raises(Unreachable) as failed:
        client.job("job_1")
    assert failed.value.code == "unexpected_answer"


def test_patience_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", "k", patience_s=0.3) as client, pytest.raises(Unreachable, match=str(port)):
        client.jobs()


def test_a_service_that_stays_unavailable_is_reported_as_it_answered(stub: ApiStub) -> None:
    stub.on("GET", "/v1/jobs", Answer.problem(503, code="starting", detail="not yet"))
    with Client(stub.url, "k", patience_s=0.3) as client, pytest.raises(ApiError, match="not yet"):
        client.jobs()
    assert len(stub.seen) > 1


def test_lists_are_read_page_by_page(stub: ApiStub, client: Client) -> None:
    pages = [[job(id=f"job_{n}") for n in numbers] for numbers in ((1, 2), (3,))]
    stub.on("GET", "/v1/jobs", Answer.json(listing(*pages[0], has_more=True)), Answer.json(listing(*pages[1])))
    assert [one["id"] for one in client.jobs()] == ["job_1", "job_2", "job_3"]
    assert [dict(parse_qsl(seen.query)) for seen in stub.seen] == [{}, {"after": "job_2"}]
    stub.on("GET", "/v1/jobs", Answer.json(listing(*pages[0], has_more=True)))
    assert [one["id"] for one in client.jobs(limit=1)] == ["job_1"]


def test_an_id_can_not_lead_elsewhere(stub: ApiStub, client: Client) -> None:
    with pytest.raises(ApiError):
        client.job("../../healthz?x=1")
    assert stub.seen[0].path == "/v1/jobs/../../healthz?x=1"
    assert stub.seen[0].query == ""


def test_following_takes_a_broken_stream_up_where_it_broke(stub: ApiStub, client: Client) -> None:
    a, b, c, d = (event(n, "stage.running", stage="sanitize") for n in range(1, 5))
    end = event(5, "job.succeeded")
    stub.on(
        "GET", EVENTS,
        Answer.events(a, b, tail=b"id: 3\nevent: stage.running\ndata: {", lost=True),
        Answer.problem(503, code="restarting"),
        # The server may send an event again.
        Answer.events(b, c, lost=True),
        Answer(lost=True),
        Answer.events(d, end, event(6, "after.the.end")),
    )  # fmt: skip
    assert list(client.follow("job_1")) == [a, b, c, d, end]
    assert [seen.headers["last-event-id"] for seen in stub.seen] == ["0", "2", "2", "3", "3"]
    assert {seen.headers["accept"] for seen in stub.seen} == {"text/event-stream"}


def test_following_returns_at_the_last_event_though_the_stream_stays_open(stub: ApiStub, client: Client) -> None:
    stub.on("GET", EVENTS, Answer.events(event(1, "job.failed", code="x", message="y"), hold=True))
    assert [one["type"] for one in client.follow("job_1")] == ["job.failed"]


def test_following_a_job_that_has_ended_ends(stub: ApiStub, client: Client) -> None:
    stub.on("GET", EVENTS, Answer.events(), Answer.json(listing()))
    stub.on("GET", "/v1/jobs/job_1", Answer.json(job("succeeded")))
    assert list(client.follow("job_1", after=9)) == []


def test_a_stream_that_ends_early_loses_no_event(stub: ApiStub, client: Client) -> None:
    a, b, end = event(1, "job.running"), event(2, "stage.running", stage="sanitize"), event(3, "job.cancelled")
    stub.on("GET", EVENTS, Answer.events(a), Answer.json(listing(b)), Answer.events(end))
    stub.on("GET", "/v1/jobs/job_1", Answer.json(job()))
    assert list(client.follow("job_1")) == [a, b, end]
    assert stub.requests("GET", EVENTS)[-1].headers["last-event-id"] == "2"


def test_following_gives_up_and_does_not_retry_a_refusal(stub: ApiStub, client: Client) -> None:
    stub.on("GET", EVENTS, Answer.events(lost=True))
    with pytest.raises(Unreachable):
        list(client.follow("job_1", patience_s=0.3))
    stub.on("GET", EVENTS, Answer.problem(404, code="job_not_found", detail="no such job"))
    with pytest.raises(ApiError, match="no such job"):
        list(client.follow("job_1"))


def test_events_so_far(stub: ApiStub, client: Client) -> None:
    a, b = event(1, "job.queued"), event(2, "job.running")
    stub.on("GET", EVENTS, Answer.json(listing(a, has_more=True)), Answer.json(listing(b)))
    assert list(client.events("job_1")) == [a, b]
    assert [dict(parse_qsl(seen.query))["after"] for seen in stub.seen] == ["0", "1"]


def test_a_download_is_whole_or_not_there(stub: ApiStub, client: Client, tmp_path: Path) -> None:
    content, path = "/v1/artifacts/art_1/content", tmp_path / "model.tar"
    stub.on("GET", content, Answer(body=[b"half"], lost=True), Answer(body=[b"wh", b"ole"]))
    client.download("art_1", path)
    assert path.read_bytes() == b"whole"
    stub.on("GET", content, Answer.problem(403, code="artifact_private", detail="private"))
    with pytest.raises(ApiError, match="private"):
        client.download("art_1", path)
    assert path.read_bytes() == b"whole", "what was there stays"
    assert list(tmp_path.iterdir()) == [path]


def test_reports(stub: ApiStub, client: Client) -> None:
    report = "/v1/jobs/job_1/report"
    stub.on("GET", report, Answer.json({"schema_version": 1}), Answer(body=["<p>ε".encode()], content_type="text/html"))
    assert client.report_json("job_1") == {"schema_version": 1}
    assert client.report_html("job_1") == "<p>ε"
    assert [seen.headers["accept"] for seen in stub.seen] == ["application/json", "text/html"]


STREAM = (
    b": a comment\r\n\r\nid: 7\r\nevent: stage.progress\r\ndata: {\"note\": \"two\xe2\x80\xa8lines\"}\r\n\r\n"
    b"data:first\ndata:second\nunknown: x\nretry\n\nid: 8\rdata: old Mac\r\revent: no.data\n\ndata: cut off"
)  # fmt: skip


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_a_stream_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in itertools.pairwise(bounds)]
    first, second, third = parse_events(chunks)
    assert (first.id, first.event) == ("7", "stage.progress")
    assert json.loads(first.data) == {"note": "two\u2028lines"}
    assert second == ServerSentEvent(id="7", event="message", data="first\nsecond")
    assert third == ServerSentEvent(id="8", event="message", data="old Mac")

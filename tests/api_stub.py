"""An HTTP server whose answers a test writes down, those that get lost on the way too."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import uvicorn


@dataclass(frozen=True)
class Answer:
    """``lost``: the connection breaks before all was sent. ``hold``: the body stays open until the server stops."""

    status: int = 200
    body: Sequence[bytes] = (b"",)
    content_type: str = "application/json"
    lost: bool = False
    hold: bool = False

    @classmethod
    def json(cls, value: Any, *, status: int = 200) -> Self:
        return cls(status=status, body=[json.dumps(value).encode()])

    @classmethod
    def problem(cls, status: int, **fields: Any) -> Self:
        return cls(status=status, body=[json.dumps(fields).encode()], content_type="application/problem+json")

    @classmethod
    def events(cls, *events: dict[str, Any], tail: bytes = b"", lost: bool = False, hold: bool = False) -> Self:
        framed = [
            f"id: {one['sequence']}\nevent: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events
        ]
        return cls(body=[*framed, tail], content_type="text/event-stream", lost=lost, hold=hold)


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ApiStub:
    """``on(method, path, *answers)``: one answer for each request; the last is given again and again."""

    url: str
    seen: list[Seen] = field(default_factory=list)
    _answers: dict[tuple[str, str], deque[Answer]] = field(default_factory=lambda: defaultdict(deque))
    _stopping: threading.Event = field(default_factory=threading.Event)

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self._answers[method, path] = deque(answers)

    def clear(self) -> None:
        self.seen.clear()
        self._answers.clear()

    def requests(self, method: str, path: str) -> list[Seen]:
        return [seen for seen in self.seen if (seen.method, seen.path) == (method, path)]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append(Seen(scope["method"], scope["path"], scope["query_string"].decode(), headers, body))
        answers = self._answers[scope["method"], scope["path"]]
        answer = (
            (answers.popleft() if len(answers) > 1 else answers[0]) if answers else Answer.problem(404, code="none")
        )
        sent = [(b"content-type", answer.content_type.encode())]
        if answer.lost:
            sent.append((b"content-length", b"%d" % (sum(map(len, answer.body)) + 1)))
        await send({"type": "http.response.start", "status": answer.status, "headers": sent})
        for part in answer.body:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        while answer.hold and not self._stopping.is_set():
            await asyncio.sleep(0.02)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@contextmanager
def running_stub() -> Iterator[ApiStub]:
    listener = socket.create_server(("127.0.0.1", 0))
    stub = ApiStub(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    server = uvicorn.Server(uvicorn.Config(stub, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub._stopping.set()
        server.should_exit = True
        thread.join()
        listener.close()


def plan(**over: Any) -> dict[str, Any]:
    return {
        "target_epsilon": 4.0, "target_delta": 1e-5, "records": 600, "expected_batch": 16, "sample_rate": 0.0267,
        "steps": 4, "noise_multiplier": 0.61, "max_grad_norm": 1.0, "clipping": "flat", "unit": "record", "units": 600,
        "max_records_per_unit": 1,
    } | over  # fmt: skip


def job(state: str = "running", *, stages: Sequence[str] = ("sanitize", "report"), **over: Any) -> dict[str, Any]:
    return {
        "object": "job", "id": "job_1", "recipe": "privcode", "preset": "demo", "state": state, "dataset": "ds_1",
        "prompts": "ds_2", "spec": {}, "plan": plan(), "warnings": [], "error": None, "created_at": 1.0,
        "started_at": 1.0, "ended_at": None,
        "stages": [
            {"name": name, "queue": "trainer", "state": "pending", "attempt": 0, "progress": None, "metrics": None,
             "error_code": None, "started_at": None, "ended_at": None}
            for name in stages
        ],
    } | over  # fmt: skip


def event(sequence: int, type_: str, **data: Any) -> dict[str, Any]:
    return {"object": "event", "sequence": sequence, "type": type_, "data": data, "created_at": float(sequence)}


def listing(*data: Any, has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": list(data), "has_more": has_more}

"""The client of the HTTP API.

    with Client("http://127.0.0.1:8321", api_key) as client:
        private = client.upload_dataset(Path("code.tar.gz"), name="billing", visibility="private", format="archive")
        prompts = client.upload_dataset(Path("prompts.jsonl"), name="prompts", visibility="public", kind="prompts")
        job = client.submit({"preset": "paper", "dataset": private["id"], "prompts": prompts["id"]})
        for event in client.follow(job["id"]):
            print(event["type"], event["data"])

Every request may be repeated without harm (GET, or POST with an ``Idempotency-Key``), so a lost connection or a
service that is not available for a moment is tried again, for ``patience_s`` seconds.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, cast
from urllib.parse import quote

import httpx

from privcode.client_objects import Artifact, BudgetHistory, Dataset, Estimate, Event, Job, Listing
from privcode.errors import PrivCodeError
from privcode.results import JsonObject
from privcode.sse import parse_events
from privcode.states import JobState

Value = TypeVar("Value")

# An upload is answered when all of it has been read and checked.
_TIMEOUT: Final = httpx.Timeout(600, connect=5, pool=5)
# The server writes a comment every 15 s; a stream that is silent for longer is dead.
_STREAM_TIMEOUT: Final = httpx.Timeout(45, connect=5, pool=5)
_LAST_EVENTS: Final = frozenset(f"job.{state}" for state in JobState if state.ended)
_UNAVAILABLE: Final = frozenset({502, 503, 504})
_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0


class ApiError(PrivCodeError):
    """The service refused; ``status`` is HTTP's, the rest as in its problem+json answer."""

    code = "api_error"

    def __init__(
        self, message: str, *, status: int, code: str | None = None, field: str | None = None, value: Any = None
    ) -> None:
        super().__init__(message, code=code, field=field, value=value)
        self.status = status


class Unreachable(PrivCodeError):
    """Nothing answers at the service's URL, or not in a way that makes sense."""

    code = "unreachable"


class Client:
    """``url`` without ``/v1``. Methods raise :class:`ApiError` and :class:`Unreachable`; safe for one thread."""

    def __init__(self, url: str, api_key: str, *, patience_s: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=_TIMEOUT,
            # A proxy of the environment can't reach this machine's own service.
            mounts={"all://127.0.0.1": None, "all://localhost": None},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def upload_dataset(
        self,
        path: Path,
        *,
        name: str,
        visibility: Literal["private", "public"],
        format: Literal["jsonl", "archive"] = "jsonl",
        kind: Literal["pairs", "prompts"] = "pairs",
        budget_epsilon: float | None = None,
        budget_delta: float | None = None,
        min_solution_chars: int | None = None,
        max_solution_chars: int | None = None,
        max_problem_chars: int | None = None,
        unit: Literal["record", "file"] | None = None,
    ) -> Dataset:
        """Upload a file piece by piece; it is never in memory as a whole. ``unit``: what of an archive is protected as
        one."""
        options: dict[str, str | float | None] = {
            "name": name,
            "visibility": visibility,
            "format": format,
            "kind": kind,
            "budget_epsilon": budget_epsilon,
            "budget_delta": budget_delta,
            "min_solution_chars": min_solution_chars,
            "max_solution_chars": max_solution_chars,
            "max_problem_chars": max_problem_chars,
            "unit": unit,
        }
        query = {option: value for option, value in options.items() if value is not None}
        headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": _new_key()}

        def send() -> Dataset:
            with path.open("rb") as file:
                response = self._http.post("/v1/datasets", params=query, content=file, headers=headers)
            return cast(Dataset, _read(response, "dataset"))

        return self._persist(send)

    def dataset(self, dataset_id: str) -> Dataset:
        return cast(Dataset, self._get(_path("datasets", dataset_id), "dataset"))

    def budget(self, dataset_id: str) -> BudgetHistory:
        """What may be spent on a private dataset, what is, and by which jobs."""
        return cast(BudgetHistory, self._get(_path("datasets", dataset_id, "budget"), "budget"))

    def estimate(self, request: Mapping[str, Any]) -> Estimate:
        """What a job would spend; nothing is stored or reserved."""
        return cast(Estimate, self._post("/v1/jobs/estimate", "estimate", body=request))

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job once, whatever happens on the way: privacy would else be spent twice."""
        return cast(Job, self._post("/v1/jobs", "job", body=request, key=idempotency_key or _new_key()))

    def job(self, job_id: str) -> Job:
        return cast(Job, self._get(_path("jobs", job_id), "job"))

    def jobs(self, *, limit: int | None = None) -> list[Job]:
        """All jobs, or the ``limit`` newest; newest first."""
        return cast(list[Job], self._all("/v1/jobs", limit=limit))

    def cancel(self, job_id: str) -> Job:
        return cast(Job, self._post(_path("jobs", job_id, "cancel"), "job"))

    def artifacts(self, job_id: str) -> list[Artifact]:
        """What the job's stages wrote, each with its privacy label."""
        return cast(list[Artifact], self._all(_path("jobs", job_id, "artifacts")))

    def download(self, artifact_id: str, path: Path) -> None:
        """Write an artifact's content to ``path``: its one file, or a tar of its files. All of it or nothing."""
        partial = path.with_name(f".{path.name}.part")

        def receive() -> None:
            with self._http.stream("GET", _path("artifacts", artifact_id, "content")) as response:
                _checked(response)
                with partial.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)

        try:
            self._persist(receive)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def report_json(self, job_id: str) -> JsonObject:
        return cast(JsonObject, json.loads(self._report(job_id, "application/json")))

    def report_html(self, job_id: str) -> str:
        """The report as a page that needs nothing else."""
        return self._report(job_id, "text/html").decode()

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """The events so far that come after number ``after``."""
        more = True
        while more:
            answer = self._get(_path("jobs", job_id, "events"), "list", after=after, limit=1000)
            page = cast(Listing[Event], answer)
            for event in page["data"]:
                after = event["sequence"]
                yield event
            more = page["has_more"]

    def follow(self, job_id: str, *, after: int = 0, patience_s: float = 60.0) -> Iterator[Event]:
        """Events after number ``after`` as they happen, each once and in order, until the job has ended.

        A broken stream is taken up again where it broke; raises :class:`Unreachable` if nothing could be read for
        ``patience_s`` seconds.
        """
        retry = _Retry(patience_s)
        while True:
            try:
                for event in self._stream(job_id, after):
                    if event["sequence"] > after:
                        after = event["sequence"]
                        retry = _Retry(patience_s)
                        yield event
                        if event["type"] in _LAST_EVENTS:
                            return
                # The stream ended in order but the job's end was not in it: it ended before ``after``, or the server
                # stops. The state is read before the events, so that none can be missed.
                ended = JobState(self.job(job_id)["state"]).ended
                for event in self.events(job_id, after=after):
                    after = event["sequence"]
                    yield event
                if ended:
                    return
                retry.wait(self.url, "the event stream ended early")
            except httpx.TransportError as error:
                retry.wait(self.url, type(error).__name__)
            except ApiError as error:
                if error.status not in _UNAVAILABLE:
                    raise
                retry.wait(self.url, f"status {error.status}")

    def _stream(self, job_id: str, after: int) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        url = _path("jobs", job_id, "events")
        with self._http.stream("GET", url, headers=headers, timeout=_STREAM_TIMEOUT) as response:
            _checked(response)
            for sent in parse_events(response.iter_bytes()):
                yield cast(Event, _parse(sent.data, "event", response.url))

    def _get(self, path: str, kind: str, **query: str | int) -> JsonObject:
        return self._persist(lambda: _read(self._http.get(path, params=query), kind))

    def _post(
        self, path: str, kind: str, *, body: Mapping[str, Any] | None = None, key: str | None = None
    ) -> JsonObject:
        headers = {"Idempotency-Key": key} if key else {}
        return self._persist(lambda: _read(self._http.post(path, json=body, headers=headers), kind))

    def _all(self, path: str, *, limit: int | None = None) -> list[JsonObject]:
        found: list[JsonObject] = []
        query: dict[str, str | int] = {}
        while limit is None or len(found) < limit:
            page = self._get(path, "list", **query)
            found.extend(page["data"])
            if not page["has_more"]:
                break
            query["after"] = found[-1]["id"]
        return found[:limit]

    def _report(self, job_id: str, accept: str) -> bytes:
        url = _path("jobs", job_id, "report")
        return self._persist(lambda: _checked(self._http.get(url, headers={"Accept": accept})).content)

    def _persist(self, request: Callable[[], Value]) -> Value:
        """Make a request that may be repeated, again while the service can't be reached."""
        retry = _Retry(self._patience_s)
        while True:
            try:
                return request()
            except httpx.TransportError as error:
                retry.wait(self.url, type(error).__name__)
            except ApiError as error:
                if error.status not in _UNAVAILABLE or not retry.left:
                    raise
                retry.wait(self.url, f"status {error.status}")


class _Retry:
    """Waits longer each time, until ``patience_s`` seconds are over."""

    def __init__(self, patience_s: float) -> None:
        self._deadline = time.monotonic() + patience_s
        self._delay = _FIRST_DELAY_S

    @property
    def left(self) -> bool:
        return time.monotonic() < self._deadline

    def wait(self, url: str, reason: str) -> None:
        """Raises :class:`Unreachable` when patience is at its end."""
        if not self.left:
            raise Unreachable(f"{url} can't be reached: {reason}")
        time.sleep(min(self._delay, max(0.0, self._deadline - time.monotonic())))
        self._delay = min(self._delay * 2, _LONGEST_DELAY_S)


def _new_key() -> str:
    return secrets.token_hex(16)


def _read(response: httpx.Response, kind: str) -> JsonObject:
    return _parse(_checked(response).content, kind, response.url)


def _parse(content: bytes | str, kind: str, url: httpx.URL) -> JsonObject:
    """The JSON object, if it says that it is of this ``kind``; raises :class:`Unreachable` (``unexpected_answer``)."""
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or answer.get("object") != kind:
        raise Unreachable(f"{url} answers, but not as PrivCode does", code="unexpected_answer")
    return answer


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _checked(response: httpx.Response) -> httpx.Response:
    """Raises :class:`ApiError` unless the status is 2xx."""
    if response.is_success:
        return response
    response.read()
    problem: Any = None
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        problem = response.json()
    if not isinstance(problem, dict):
        raise ApiError(
            f"{response.url} answered {response.status_code} {response.reason_phrase}",
            status=response.status_code,
            code=f"http_{response.status_code}",
        )
    raise ApiError(
        str(problem.get("detail", problem.get("title", response.reason_phrase))),
        status=response.status_code,
        code=problem.get("code"),
        field=problem.get("field"),
        value=problem.get("value"),
    )

"""The client of the HTTP API.

    with Client("http://127.0.0.1:8321", api_key) as client:
        private = client.upload_dataset(Path("code.tar.gz"), name="billing", visibility="private", format="archive")
        prompts = client.upload_dataset(Path("prompts.jsonl"), name="prompts", visibility="public", kind="prompts")
        job = client.submit({"preset": "paper", "dataset": private.id, "prompts": prompts.id})
        for event in client.follow(job.id):
            print(event.type, event.data)

Every request may be repeated without harm (GET, or POST with an ``Idempotency-Key``), so a lost connection or a
service that is not available for a moment is tried again, for ``patience_s`` seconds.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from privcode.client_objects import (
    Artifact,
    BudgetHistory,
    Dataset,
    Estimate,
    Event,
    Job,
    Listing,
)
from privcode.errors import PrivCodeError
from privcode.results import JsonObject
from privcode.sse import parse_events

Answer = TypeVar("Answer", bound=BaseModel)
Value = TypeVar("Value")

# An upload is answered when all of it has been read and checked.
_TIMEOUT: Final = httpx.Timeout(600, connect=5, pool=5)
# The server writes a comment every 15 s; a stream that is silent for longer is dead.
_STREAM_TIMEOUT: Final = httpx.Timeout(45, connect=5, pool=5)
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
    ) -> Dataset:
        """Upload a file piece by piece; it is never in memory as a whole."""
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
        }
        query = {option: value for option, value in options.items() if value is not None}
        headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": _new_key()}

        def send() -> Dataset:
            with path.open("rb") as file:
                response = self._http.post("/v1/datasets", params=query, content=file, headers=headers)
            return _read(response, Dataset)

        return self._persist(send)

    def dataset(self, dataset_id: str) -> Dataset:
        return self._get(_path("datasets", dataset_id), Dataset)

    def budget(self, dataset_id: str) -> BudgetHistory:
        """What may be spent on a private dataset, what is, and by which jobs."""
        return self._get(_path("datasets", dataset_id, "budget"), BudgetHistory)

    def estimate(self, request: Mapping[str, Any]) -> Estimate:
        """What a job would spend; nothing is stored or reserved."""
        return self._post("/v1/jobs/estimate", Estimate, body=request)

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job once, whatever happens on the way: privacy would else be spent twice."""
        return self._post("/v1/jobs", Job, body=request, key=idempotency_key or _new_key())

    def job(self, job_id: str) -> Job:
        return self._get(_path("jobs", job_id), Job)

    def jobs(self) -> Iterator[Job]:
        """All jobs, newest first, page by page as they are asked for."""
        return self._all("/v1/jobs", Listing[Job], lambda job: job.id)

    def cancel(self, job_id: str) -> Job:
        return self._post(_path("jobs", job_id, "cancel"), Job)

    def artifacts(self, job_id: str) -> Iterator[Artifact]:
        return self._all(_path("jobs", job_id, "artifacts"), Listing[Artifact], lambda artifact: artifact.id)

    def download(self, artifact_id: str, path: Path) -> None:
        """Write an artifact's content to ``path``: its one file, or a tar of its files. All of it or nothing."""
        self._save(_path("artifacts", artifact_id, "content"), path, accept="*/*")

    def report_json(self, job_id: str) -> JsonObject:
        report: JsonObject = self._persist(
            lambda: _checked(
                self._http.get(_path("jobs", job_id, "report"), headers={"Accept": "application/json"})
            ).json()
        )
        return report

    def report_html(self, job_id: str, path: Path) -> None:
        """Write the self-contained HTML report to ``path``."""
        self._save(_path("jobs", job_id, "report"), path, accept="text/html")

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """The events so far that come after number ``after``."""
        more = True
        while more:
            page = self._get(_path("jobs", job_id, "events"), Listing[Event], after=after, limit=1000)
            for event in page.data:
                after = event.sequence
                yield event
            more = page.has_more

    def follow(self, job_id: str, *, after: int = 0, patience_s: float = 60.0) -> Iterator[Event]:
        """Events after number ``after`` as they happen, each once and in order, until the job has ended.

        A broken stream is taken up again where it broke; raises :class:`Unreachable` if nothing could be read for
        ``patience_s`` seconds.
        """
        retry = _Retry(patience_s)
        while True:
            try:
                for event in self._stream(job_id, after):
                    if event.sequence > after:
                        after = event.sequence
                        retry = _Retry(patience_s)
                        yield event
                        if event.ends_job:
                            return
                # The stream ended in order but the job's end was not in it: it ended before ``after``, or the server
                # stops. The state is read before the events, so that none can be missed.
                ended = self.job(job_id).state.ended
                for event in self.events(job_id, after=after):
                    after = event.sequence
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
        with self._http.stream(
            "GET", _path("jobs", job_id, "events"), headers=headers, timeout=_STREAM_TIMEOUT
        ) as response:  # fmt: skip
            if response.is_error:
                response.read()
            _checked(response)
            for sent in parse_events(response.iter_bytes()):
                yield _parse(sent.data, Event, response.url)

    def _get(self, path: str, answer: type[Answer], **query: str | int) -> Answer:
        return self._persist(lambda: _read(self._http.get(path, params=query), answer))

    def _post(
        self, path: str, answer: type[Answer], *, body: Mapping[str, Any] | None = None, key: str | None = None
    ) -> Answer:
        headers = {"Idempotency-Key": key} if key else {}
        return self._persist(lambda: _read(self._http.post(path, json=body, headers=headers), answer))

    def _all(self, path: str, page: type[Listing[Value]], cursor: Callable[[Value], str]) -> Iterator[Value]:
        query: dict[str, str | int] = {}
        while True:
            listing = self._get(path, page, **query)
            yield from listing.data
            if not listing.has_more:
                return
            query["after"] = cursor(listing.data[-1])

    def _save(self, url: str, path: Path, *, accept: str) -> None:
        partial = path.with_name(f".{path.name}.part")

        def receive() -> None:
            with self._http.stream("GET", url, headers={"Accept": accept}) as response:
                if response.is_error:
                    response.read()
                _checked(response)
                with partial.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)

        try:
            self._persist(receive)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

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


def _read(response: httpx.Response, answer: type[Answer]) -> Answer:
    return _parse(_checked(response).content, answer, response.url)


def _parse(content: bytes | str, answer: type[Answer], url: httpx.URL) -> Answer:
    try:
        return answer.model_validate_json(content)
    except ValidationError:
        raise Unreachable(f"{url} answers, but not as PrivCode does", code="unexpected_answer") from None


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _checked(response: httpx.Response) -> httpx.Response:
    """Raises :class:`ApiError` unless the status is 2xx."""
    if response.is_success:
        return response
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

"""Untrusted code: what is asked of the runner, what it answers, and the client that asks.

The runner (``services/sandbox/runner``) is a separate process without credentials; it alone executes code. Its contract
is one HTTP call over a Unix socket: ``POST /v1/executions`` with an :class:`ExecutionBatch`, answered by one
:class:`ExecutionResult` a line, in the order in which they end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Protocol

import httpx
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from privcode.errors import SandboxUnavailable
from privcode.languages import Language
from privcode.results import ExecutionOutcome
from privcode.specs import ExecutionLimits

_MAX_FILES: Final = 64
_LANGUAGES_SECONDS: Final = 120  # the first time each tool chain is tried

# Relative, without "..", hidden parts or control characters: it becomes a path inside the sandbox.
FileName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){0,7}$", max_length=200),
]


class Execution(BaseModel):
    """One program. ``language``: lower-case name (``python``); ``id``: unique in its batch. ``files``: text by name,
    put into the working directory. ``expected_exit``: the exit code that passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    language: str
    code: str
    stdin: str = ""
    files: Mapping[FileName, str] = Field(default_factory=dict, max_length=_MAX_FILES)
    expected_exit: Annotated[int, Field(ge=0, le=255)] = 0


class ExecutionBatch(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    limits: ExecutionLimits
    executions: Sequence[Execution]


class ExecutionResult(ExecutionOutcome):
    id: str


class LanguageStatus(BaseModel):
    """``version``: the tool chain's own words. ``missing``: why its programs are not executed here; None: they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: Language
    version: str | None
    missing: str | None


_STATUSES: Final = TypeAdapter(list[LanguageStatus])


class Sandbox(Protocol):
    """Something that executes one untrusted program under limits. Safe to call from several threads."""

    def run(self, execution: Execution, *, limits: ExecutionLimits) -> ExecutionResult:
        """Run one program until it ends, reaches a limit, or :meth:`close` is called.

        A failure of the sandbox itself is the outcome ``sandbox_unavailable``, with its reason in ``stderr``.
        """
        ...

    def languages(self) -> list[LanguageStatus]:
        """All ten, executed here or not. May take seconds the first time: each tool chain is tried."""
        ...

    def close(self) -> None:
        """Kill what runs. It, and whatever is asked for afterwards, ends as ``sandbox_unavailable``."""
        ...


class RunnerClient:
    """Hands programs to the runner."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def run(self, executions: Sequence[Execution], *, limits: ExecutionLimits) -> Iterator[ExecutionResult]:
        """Yield a result for each execution, as they end.

        Raises :class:`SandboxUnavailable` when the runner can't be reached or stops before all have ended.
        """
        body = ExecutionBatch(limits=limits, executions=executions).model_dump_json()
        missing = {execution.id for execution in executions}
        seconds = (limits.time_limit_s + limits.compile_limit_s) * 10 + 60
        try:
            with (
                self._client(timeout=seconds) as client,
                client.stream("POST", "/v1/executions", content=body,
                              headers={"content-type": "application/json"}) as response,
            ):  # fmt: skip
                response.raise_for_status()
                for line in _lines(response):
                    result = ExecutionResult.model_validate_json(line)
                    missing.discard(result.id)
                    yield result
        except (httpx.HTTPError, ValidationError) as error:
            raise _unavailable(error) from error
        if missing:
            raise SandboxUnavailable(f"the sandbox runner left {len(missing)} of {len(executions)} executions out")

    def languages(self) -> list[LanguageStatus]:
        """What the runner executes. Raises :class:`SandboxUnavailable` when it can't be reached."""
        try:
            with self._client(timeout=_LANGUAGES_SECONDS) as client:
                return _STATUSES.validate_json(client.get("/v1/languages").raise_for_status().content)
        except (httpx.HTTPError, ValidationError) as error:
            raise _unavailable(error) from error

    def _client(self, *, timeout: float) -> httpx.Client:
        # No TLS on a Unix socket: without verify=False, loading the CA certificates takes longer than an execution.
        transport = httpx.HTTPTransport(uds=str(self._socket), verify=False)
        return httpx.Client(base_url="http://runner", transport=transport, verify=False, timeout=timeout)


def _unavailable(error: Exception) -> SandboxUnavailable:
    if isinstance(error, httpx.ConnectError):
        return SandboxUnavailable("the sandbox runner can't be reached: it is not running, or starts or stops just now")
    return SandboxUnavailable(f"the sandbox runner failed: {type(error).__name__}")


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """``iter_lines`` would also split at U+2028 and its like, which a program may print and JSON does not escape."""
    begun = b""
    for chunk in response.iter_bytes():
        *complete, begun = (begun + chunk).split(b"\n")
        yield from complete

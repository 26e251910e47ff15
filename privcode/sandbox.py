"""Untrusted code: what is asked of the runner, what it answers, and the client that asks.

The runner (``services/sandbox/runner``) is a separate process without credentials; it alone executes code. Its contract
is one HTTP call over a Unix socket: ``POST /v1/executions`` with an :class:`ExecutionBatch`, answered by one
:class:`ExecutionResult` a line, in the order in which they end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from privcode.errors import SandboxUnavailable
from privcode.results import Outcome
from privcode.specs import ExecutionLimits


class Execution(BaseModel):
    """One program. ``language``: lower-case name (``python``); ``id``: unique in its batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    language: str
    code: str
    stdin: str = ""


class ExecutionBatch(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    limits: ExecutionLimits
    executions: Sequence[Execution]


class ExecutionResult(BaseModel):
    """``exit_code`` is None where the program did not end by itself; ``stdout`` and ``stderr`` are cut at the limit;
    ``duration_s`` is wall-clock seconds, None where it never started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    outcome: Outcome
    exit_code: int | None
    duration_s: float | None
    stdout: str
    stderr: str


class Sandbox(Protocol):
    """Something that executes one untrusted program under limits."""

    def run(self, execution: Execution, *, limits: ExecutionLimits) -> ExecutionResult: ...


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
        # No TLS on a Unix socket: without verify=False, loading the CA certificates takes longer than an execution.
        transport = httpx.HTTPTransport(uds=str(self._socket), verify=False)
        try:
            with (
                httpx.Client(transport=transport, verify=False, timeout=limits.time_limit_s * 10 + 60) as client,
                client.stream("POST", "http://runner/v1/executions", content=body,
                              headers={"content-type": "application/json"}) as response,
            ):  # fmt: skip
                response.raise_for_status()
                for line in response.iter_lines():
                    result = ExecutionResult.model_validate_json(line)
                    missing.discard(result.id)
                    yield result
        except (httpx.HTTPError, ValidationError) as error:
            raise SandboxUnavailable(f"the sandbox runner failed: {type(error).__name__}") from error
        if missing:
            raise SandboxUnavailable(f"the sandbox runner left {len(missing)} of {len(executions)} executions out")

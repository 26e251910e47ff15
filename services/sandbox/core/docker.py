"""Untrusted programs in containers of a Docker engine: one hardened container for each batch, and inside it a runner
that gives each program a sandbox of its own.

A container's standard streams are its only connection: no network, no folder of the host, and an engine on another
machine will do. When the connection is lost, whoever lost it, the runner inside sees the end of its input and ends, and
the engine removes the container.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import docker
from docker.errors import DockerException
from docker.types import LogConfig, Ulimit
from pydantic import TypeAdapter, ValidationError

from privcode.errors import SandboxUnavailable
from privcode.results import ExecutionOutcome, Outcome
from privcode.sandbox import Execution, ExecutionResult, LanguageStatus
from privcode.specs import ExecutionLimits
from services.sandbox.core.command import BUILD_MIB
from services.sandbox.core.container import Container, remove_forgotten
from services.sandbox.core.container_profile import container_profile

log = logging.getLogger(__name__)

_MIB: Final = 2**20
_RUNNER_MIB: Final = 256
_RUNNER_PROCESSES: Final = 64
_PROCESSES_BESIDE: Final = 160  # of one execution, beside the program's: the compiler's and bwrap's
_OPEN_FILES: Final = 4096
_READY_SECONDS: Final = 60.0
_LANGUAGES_SECONDS: Final = 120.0
_PROBE: Final = Execution(id="probe", language="python", code="pass")
_STATUSES: Final = TypeAdapter(list[LanguageStatus])


class DockerSandbox:
    """:class:`privcode.sandbox.Sandbox` over a Docker engine.

    ``connect`` makes a client of the engine. ``image``: the runner's (``services/sandbox/Dockerfile``). ``runtime``:
    None is the engine's default. ``concurrency``: executions at once in one container. Raises
    :class:`SandboxUnavailable` if the engine does not answer, has no such image, or can't execute a probe.
    """

    def __init__(
        self, *, connect: Callable[[], docker.DockerClient], image: str, runtime: str | None, concurrency: int
    ) -> None:
        self._connect = connect
        self._image = image
        self._runtime = runtime
        self._concurrency = concurrency
        self._closed = threading.Event()
        self._containers: set[Container] = set()
        self._lock = threading.Lock()
        self._languages: list[LanguageStatus] | None = None
        self._remove_forgotten()
        ended = self.run(_PROBE, limits=ExecutionLimits(time_limit_s=30))
        if ended.outcome is not Outcome.PASSED:
            raise SandboxUnavailable(f"can't execute a program in a container of {image}: {ended.stderr.strip()}")

    @contextmanager
    def batch(self) -> Iterator[Callable[..., ExecutionResult]]:
        """What runs programs that belong together: in one container, gone after the block."""
        batch = _Batch(start=self._start)
        try:
            yield batch.run
        finally:
            batch.close()

    def run(self, execution: Execution, *, limits: ExecutionLimits) -> ExecutionResult:
        """A batch of one."""
        with self.batch() as run:
            return run(execution, limits=limits)

    def languages(self) -> list[LanguageStatus]:
        """Those of the image. Raises :class:`SandboxUnavailable` if no container tells them."""
        with self._lock:
            if self._languages is None:
                container = self._start("--languages", ExecutionLimits())
                try:
                    self._languages = _STATUSES.validate_json(container.first_line(seconds=_LANGUAGES_SECONDS))
                except ValidationError as error:
                    raise SandboxUnavailable(f"the image {self._image} tells no languages") from error
            return self._languages

    def close(self) -> None:
        self._closed.set()
        for container in list(self._containers):
            container.hang_up()

    def _client(self) -> docker.DockerClient:
        try:
            return self._connect()
        except (DockerException, OSError) as error:
            raise SandboxUnavailable(f"the Docker engine does not answer: {error}") from error

    def _remove_forgotten(self) -> None:
        with closing(self._client()) as client:
            try:
                remove_forgotten(client)
            except (DockerException, OSError) as error:  # another runner does the same, perhaps
                log.warning("forgotten containers could not be removed: %s", error)

    def _start(self, task: str, limits: ExecutionLimits) -> Container:
        container = Container(
            # One for each: their connections are in use by different threads.
            client=self._client(),
            image=self._image,
            command=[task, "--concurrency", str(self._concurrency)],
            host=self._host(limits),
            longest_line=16 * 1024 * limits.output_kib + 65536,  # two streams, in JSON up to six bytes for one
            on_end=self._containers.discard,
        )
        self._containers.add(container)
        if self._closed.is_set():  # perhaps before it was there to be closed
            container.hang_up()
        return container

    def _host(self, limits: ExecutionLimits) -> dict[str, Any]:
        """How the container is held; keywords of docker's ``create_host_config``."""
        each_mib = max(limits.memory_mib, limits.compile_memory_mib + BUILD_MIB) + limits.file_size_mib
        memory = (_RUNNER_MIB + self._concurrency * each_mib) * _MIB
        return {
            "network_mode": "none",
            "ipc_mode": "none",
            "read_only": True,
            "cap_drop": ["ALL"],
            # AppArmor's profile for containers forbids mounts, in user namespaces as well.
            "security_opt": ["no-new-privileges", f"seccomp={json.dumps(container_profile())}", "apparmor=unconfined"],
            "tmpfs": dict.fromkeys(("/tmp", "/run"), "size=16m,nosuid,nodev,noexec"),
            "mem_limit": memory,
            "memswap_limit": memory,
            "nano_cpus": self._concurrency * 10**9,
            "pids_limit": _RUNNER_PROCESSES + self._concurrency * (limits.processes + _PROCESSES_BESIDE),
            "ulimits": [Ulimit(name="nofile", soft=_OPEN_FILES, hard=_OPEN_FILES)],
            "init": True,
            "auto_remove": True,
            # Else the engine would keep what programs write on its disk.
            "log_config": LogConfig(type="none"),
            "runtime": self._runtime,
        }


class _Batch:
    """One container, started by the first execution and replaced when it has ended."""

    def __init__(self, *, start: Callable[[str, ExecutionLimits], Container]) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._container: Container | None = None

    def run(self, execution: Execution, *, limits: ExecutionLimits) -> ExecutionResult:
        try:
            return self._running(limits).execute(execution, limits=limits)
        except SandboxUnavailable as error:
            log.warning("an execution could not be done: %s", error)
            ended = ExecutionOutcome(outcome=Outcome.SANDBOX_UNAVAILABLE, stderr=str(error))
            return ExecutionResult(id=execution.id, **ended.model_dump())

    def close(self) -> None:
        if self._container is not None:
            self._container.hang_up()

    def _running(self, limits: ExecutionLimits) -> Container:
        with self._lock:
            if self._container is None or self._container.ended:
                self._container = self._start("--stdio", limits)
                self._container.first_line(seconds=_READY_SECONDS)
            return self._container

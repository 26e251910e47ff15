"""One container with a runner in it, and the connection to its standard streams.

Whatever arrives from it is checked, since a program that broke out of its sandbox would be in the container.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Final

import docker
from docker.errors import APIError, DockerException

from privcode.errors import SandboxUnavailable
from privcode.sandbox import Execution, ExecutionBatch, ExecutionResult
from privcode.specs import ExecutionLimits

log = logging.getLogger(__name__)

LABEL: Final = "privcode.sandbox"
_USER: Final = "65532:65532"
_FRAME: Final = struct.Struct(">BxxxL")  # of the engine's stream: which one, and how many bytes follow
_STDERR: Final = 2
_SEND_SECONDS: Final = 30
_SLACK_SECONDS: Final = 60.0
_COMPLAINT_BYTES: Final = 500
_FORGOTTEN_SECONDS: Final = 600.0


def remove_forgotten(client: docker.DockerClient) -> None:
    """Remove containers that a runner made and was killed before it started them: the engine does that only after
    they have run. Any that is ten minutes old is nobody's. Raises DockerException."""
    made = client.api.containers(all=True, filters={"label": LABEL, "status": "created"})
    for container in made:
        if time.time() - container["Created"] > _FORGOTTEN_SECONDS:
            client.api.remove_container(container["Id"], force=True)


class Container:
    """Started from ``image``; gone when its runner ends, or the connection to it.

    ``longest_line``: bytes of one answer; more than that ends it. ``on_end``: called when it is gone.
    Raises :class:`SandboxUnavailable` if the engine can't start it.
    """

    def __init__(
        self,
        *,
        client: docker.DockerClient,
        image: str,
        command: list[str],
        host: Mapping[str, Any],
        longest_line: int,
        on_end: Callable[[Container], None],
    ) -> None:
        self._client = client
        self._longest_line = longest_line
        self._on_end = on_end
        self._lock = threading.Lock()
        self._ended = False
        self._first: Future[bytes] = Future()
        self._waiting: dict[str, Future[ExecutionResult]] = {}
        self._complaint = b""
        try:
            self._id = self._create(image=image, command=command, host=host)
            try:
                self._attach()
                client.api.start(self._id)
            except BaseException:
                self._remove()
                raise
        except (DockerException, OSError) as error:
            client.close()
            raise SandboxUnavailable(f"the Docker engine can't start a container: {error}") from error
        threading.Thread(target=self._attend, name=f"container-{self._id[:12]}").start()

    @property
    def ended(self) -> bool:
        return self._ended

    def first_line(self, *, seconds: float) -> bytes:
        """Waits for it. Raises :class:`SandboxUnavailable`, with what the runner complained about, if none comes."""
        try:
            return self._first.result(timeout=seconds)
        except TimeoutError as error:
            self.hang_up()
            raise SandboxUnavailable(f"the runner in the container was not ready after {seconds:.0f} s") from error

    def execute(self, execution: Execution, *, limits: ExecutionLimits) -> ExecutionResult:
        """Raises :class:`SandboxUnavailable` if the container ends first."""
        line = ExecutionBatch(limits=limits, executions=[execution]).model_dump_json().encode() + b"\n"
        answer: Future[ExecutionResult] = Future()
        try:
            with self._lock:
                if self._ended:
                    raise SandboxUnavailable("the container has ended")
                self._waiting[execution.id] = answer
                self._socket.sendall(line)
            return answer.result(timeout=limits.compile_limit_s + limits.time_limit_s + _SLACK_SECONDS)
        except (OSError, TimeoutError) as error:
            self.hang_up()
            raise SandboxUnavailable(f"the container does not answer: {type(error).__name__}") from error

    def hang_up(self) -> None:
        """Returns at once; the runner sees the end of its input, and the container goes."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _create(self, *, image: str, command: list[str], host: Mapping[str, Any]) -> str:
        api = self._client.api
        # Nothing of /proc covered or read-only (systempaths=unconfined): else the kernel refuses sandboxes a new /proc.
        paths: dict[str, list[str]] = {"MaskedPaths": [], "ReadonlyPaths": []}
        created = api.create_container(
            image, command, host_config=api.create_host_config(**host) | paths, user=_USER, labels=[LABEL],
            stdin_open=True, network_disabled=True,
        )  # fmt: skip
        return str(created["Id"])

    def _attach(self) -> None:
        attached = self._client.api.attach_socket(
            self._id, params=dict.fromkeys(("stdin", "stdout", "stderr", "stream"), 1)
        )
        # Without TLS the SDK hands out a file that can only be read.
        self._attached = attached
        self._socket: socket.socket = getattr(attached, "_sock", attached)
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))

    def _attend(self) -> None:
        """A thread's work, from start to removal."""
        try:
            lines = self._lines()
            for line in lines:
                self._first.set_result(line)
                break
            for line in lines:
                result = ExecutionResult.model_validate_json(line)
                answer = self._waiting.pop(result.id, None)
                if answer is not None:
                    answer.set_result(result)
        except (OSError, ValueError) as error:  # the connection; or what came is no answer
            log.warning("the connection to a container: %s", type(error).__name__)
        finally:
            self._end()

    def _lines(self) -> Iterator[bytes]:
        """Of standard output. Raises ValueError if one is too long."""
        with self._socket.makefile("rb") as stream:
            begun = bytearray()
            while len(header := stream.read(_FRAME.size)) == _FRAME.size:
                which, size = _FRAME.unpack(header)
                data = stream.read(size)
                if which == _STDERR:
                    self._complaint = (self._complaint + data)[-_COMPLAINT_BYTES:]
                    continue
                *whole, rest = data.split(b"\n")
                for part in whole:
                    yield bytes(begun + part)
                    begun.clear()
                begun += rest
                if len(begun) > self._longest_line:
                    raise ValueError(f"a line of more than {self._longest_line} bytes")

    def _end(self) -> None:
        with self._lock:
            self._ended = True
        if not self._first.done():
            complaint = self._complaint.decode(errors="replace").strip()
            self._first.set_exception(SandboxUnavailable(f"the runner in the container did not start: {complaint}"))
        for answer in self._waiting.values():
            answer.set_exception(SandboxUnavailable("the container ended"))
        self._remove()
        self._attached.close()
        self._client.close()
        self._on_end(self)

    def _remove(self) -> None:
        try:
            self._client.api.remove_container(self._id, force=True)
        except (DockerException, OSError) as error:
            # Else it is gone, or the engine is removing it already.
            if not (isinstance(error, APIError) and error.status_code in (404, 409)):
                log.warning("a container could not be removed: %s", error)

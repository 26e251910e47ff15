"""Watch one running sandbox: collect its output, hold its limits, kill all of it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privcode.results import Outcome
from privcode.specs import ExecutionLimits
from services.sandbox.core.command import STARTED
from services.sandbox.core.memory import tree_exceeds
from services.sandbox.core.verdict import outcome_of_exit

_SETUP_SECONDS: Final = 30.0
_DRAIN_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 0.05
_CHUNK: Final = 65536


@dataclass(frozen=True, kw_only=True)
class Ended:
    """``exit_code`` is None where the program did not end by itself; ``duration_s`` is None where it never started,
    and then ``stderr`` is bwrap's."""

    outcome: Outcome
    exit_code: int | None
    duration_s: float | None
    stdout: str
    stderr: str


class Supervision:
    """``bwrap``: the running process with its two output pipes. ``status``: reading end of its JSON status. ``stop``:
    set by another thread to end the execution."""

    def __init__(
        self, *, bwrap: subprocess.Popen[bytes], status: int, limits: ExecutionLimits, stop: threading.Event
    ) -> None:
        assert bwrap.stdout is not None
        assert bwrap.stderr is not None
        self._bwrap = bwrap
        self._limits = limits
        self._stop = stop
        self._stdout = bwrap.stdout.fileno()
        self._stderr = bwrap.stderr.fileno()
        self._status = status
        self._received = {self._stdout: bytearray(), self._stderr: bytearray(), self._status: bytearray()}
        # Bytes that count. One more is kept of each stream, which tells "too much" from "just enough".
        self._room = {
            self._stdout: limits.output_kib * 1024 + len(STARTED),
            self._stderr: limits.output_kib * 1024,
            self._status: _CHUNK,
        }
        self._selector = selectors.DefaultSelector()
        self._init: int | None = None  # pidfd of the first process of the sandbox's pid namespace
        self._init_pid: int | None = None
        self._began = time.monotonic()
        self._started: float | None = None

    def wait(self) -> Ended:
        """Block until the sandbox has ended, by itself or by a limit. No process of it is left then."""
        bwrap_exit = os.pidfd_open(self._bwrap.pid)
        try:
            for descriptor in self._received:
                os.set_blocking(descriptor, False)
                self._selector.register(descriptor, selectors.EVENT_READ)
            self._selector.register(bwrap_exit, selectors.EVENT_READ)
            verdict = self._watch(bwrap_exit)
            self._selector.unregister(bwrap_exit)
            ended_at = time.monotonic()
            self._kill()
            self._drain()
            return self._ended(verdict, ended_at=ended_at)
        finally:
            self._kill()
            self._bwrap.wait()
            self._selector.close()
            os.close(bwrap_exit)
            if self._init is not None:
                os.close(self._init)

    def _watch(self, bwrap_exit: int) -> Outcome | None:
        """Read until bwrap ends (None: by itself) or a limit is reached (its outcome)."""
        while True:
            ready = [key.fd for key, _ in self._selector.select(_TICK_SECONDS)]
            for descriptor in ready:
                if descriptor != bwrap_exit:
                    self._read(descriptor)
            if self._over_output():
                return Outcome.OUTPUT_LIMIT
            if bwrap_exit in ready:
                return None
            if self._stop.is_set():
                return Outcome.SANDBOX_UNAVAILABLE
            now = time.monotonic()
            if self._started is None:
                if now - self._began > _SETUP_SECONDS:
                    return Outcome.SANDBOX_UNAVAILABLE
            elif now - self._started > self._limits.time_limit_s:
                return Outcome.TIMED_OUT
            elif self._over_memory():
                return Outcome.OUT_OF_MEMORY

    def _read(self, descriptor: int) -> bool:
        """Take what there is; False at the end of the stream."""
        received = self._received[descriptor]
        try:
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return True
        if not chunk:
            self._selector.unregister(descriptor)
            return False
        received += chunk[: self._room[descriptor] + 1 - len(received)]
        if descriptor == self._stdout and self._started is None:
            self._started = time.monotonic()
        elif descriptor == self._status and self._init is None:
            self._find_init()
        return True

    def _find_init(self) -> None:
        line, complete, _ = bytes(self._received[self._status]).partition(b"\n")
        if not complete:
            return
        pid = int(json.loads(line)["child-pid"])
        with contextlib.suppress(OSError):  # it has ended already
            descriptor = os.pidfd_open(pid)
            # Only while it is bwrap's child is the number certain to be still its own.
            if _parent(pid) == self._bwrap.pid:
                self._init, self._init_pid = descriptor, pid
            else:
                os.close(descriptor)

    def _over_output(self) -> bool:
        return any(len(self._received[stream]) > self._room[stream] for stream in (self._stdout, self._stderr))

    def _over_memory(self) -> bool:
        limit = self._limits.memory_mib * 1024 * 1024
        return self._init_pid is not None and tree_exceeds(self._init_pid, limit_bytes=limit)

    def _kill(self) -> None:
        """Kill the first process of the pid namespace, and with it all others; bwrap then ends by itself. Where that
        process is not known yet, kill bwrap."""
        if self._init is None:
            self._bwrap.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._init, signal.SIGKILL)
        # Readable when the namespace is empty: its first process ends last.
        with selectors.DefaultSelector() as gone:
            gone.register(self._init, selectors.EVENT_READ)
            gone.select(_DRAIN_SECONDS)

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._selector.get_map() and time.monotonic() < deadline:
            for key, _ in self._selector.select(_TICK_SECONDS):
                self._read(key.fd)

    def _ended(self, verdict: Outcome | None, *, ended_at: float) -> Ended:
        if self._over_output() and verdict is None:
            verdict = Outcome.OUTPUT_LIMIT
        exit_code = self._exit_code() if verdict is None else None
        stderr = self._text(self._stderr)
        if self._started is None or (verdict is None and exit_code is None):
            # After the start standard error is the program's and none of ours.
            message = stderr if self._started is None else "bwrap ended without telling the program's exit code"
            return Ended(
                outcome=Outcome.SANDBOX_UNAVAILABLE, exit_code=None, duration_s=None, stdout="", stderr=message
            )
        return Ended(
            outcome=verdict or outcome_of_exit(exit_code or 0, stderr=stderr),
            exit_code=exit_code,
            duration_s=ended_at - self._started,
            stdout=self._text(self._stdout),
            stderr=stderr,
        )

    def _exit_code(self) -> int | None:
        for line in bytes(self._received[self._status]).splitlines():
            status = json.loads(line)
            if "exit-code" in status:
                return int(status["exit-code"])
        return None

    def _text(self, stream: int) -> str:
        data = bytes(self._received[stream][: self._room[stream]])
        return data.removeprefix(STARTED if stream == self._stdout else b"").decode(errors="replace")


def _parent(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("PPid:"):
            return int(line.split()[1])
    return 0

"""Watch one running sandbox: collect its output, hold its limits, kill all of it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

from privcode.results import ExecutionOutcome, Outcome
from privcode.specs import ExecutionLimits
from services.sandbox.core.cgroups import Group
from services.sandbox.core.command import MARKS, SET_UP, STARTED, Prepared
from services.sandbox.core.memory import tree_bytes
from services.sandbox.core.verdict import outcome_of_exit, signal_of_exit

_SETUP_SECONDS: Final = 30.0
_DRAIN_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 0.05
_CHUNK: Final = 65536
_MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class FirstProcess:
    """Of the execution's pid namespace; when it is killed, all others die before it has ended. ``handle``: a pidfd."""

    handle: int
    pid: int


@dataclass(frozen=True)
class Usage:
    cpu_s: float
    peak_bytes: int


class Leader(Protocol):
    """What starts an execution's first process."""

    @property
    def ended(self) -> int:
        """A descriptor that can be read when the execution has ended."""
        ...

    def is_parent_of(self, pid: int, /) -> bool: ...

    def kill(self) -> None:
        """End an execution whose first process is not known."""
        ...

    def reap(self, first: FirstProcess | None, /) -> Usage | None:
        """Leave no process behind, dead ones included. What they used, if that can be known."""
        ...


@dataclass(frozen=True, kw_only=True)
class Watched:
    """An execution to watch.

    ``first``: None where ``status`` will tell. ``stdout``, ``stderr`` and ``status`` (JSON lines, as bwrap's) are to be
    read; ``block`` is what the first process waits for. ``group``: control group for its processes, if there is one.
    ``stop``: set by another thread to end it.
    """

    leader: Leader
    first: FirstProcess | None
    stdout: int
    stderr: int
    status: int
    block: int
    group: Group | None
    stop: threading.Event


class Supervision:
    """Of one execution, from its start to the end of the last of its processes."""

    def __init__(self, watched: Watched, *, program: Prepared, limits: ExecutionLimits, expected_exit: int) -> None:
        self._leader = watched.leader
        self._block = watched.block
        self._group = watched.group
        self._stop = watched.stop
        self._program = program
        self._limits = limits
        self._expected_exit = expected_exit
        self._stdout = watched.stdout
        self._stderr = watched.stderr
        self._status = watched.status
        self._received = {self._stdout: bytearray(), self._stderr: bytearray(), self._status: bytearray()}
        # Bytes that count. One more is kept of each stream, which tells "too much" from "just enough".
        self._room = {
            self._stdout: limits.output_kib * 1024 + len(MARKS),
            self._stderr: limits.output_kib * 1024,
            self._status: _CHUNK,
        }
        self._selector = selectors.DefaultSelector()
        self._first = watched.first
        self._peak_bytes = 0
        self._began = time.monotonic()
        self._set_up: float | None = None
        self._started: float | None = None

    def wait(self) -> ExecutionOutcome:
        """Block until the sandbox has ended, by itself or by a limit. No process of it is left then."""
        try:
            if self._first is not None:
                self._admit(self._first)
            for descriptor in self._received:
                os.set_blocking(descriptor, False)
                self._selector.register(descriptor, selectors.EVENT_READ)
            self._selector.register(self._leader.ended, selectors.EVENT_READ)
            verdict = self._watch()
            self._selector.unregister(self._leader.ended)
            ended_at = time.monotonic()
            self._kill()
            self._drain()
            usage = self._leader.reap(self._first)
            return self._ended(verdict, ended_at=ended_at, usage=usage)
        finally:
            self._kill()
            self._leader.reap(None)
            self._selector.close()
            if self._first is not None:
                os.close(self._first.handle)

    def _watch(self) -> Outcome | None:
        """Read until the execution ends (None: by itself) or a limit is reached (its outcome)."""
        while True:
            ready = [key.fd for key, _ in self._selector.select(_TICK_SECONDS)]
            for descriptor in ready:
                if descriptor != self._leader.ended:
                    self._read(descriptor)
            if self._over_output():
                return self._too_much_said()
            if self._leader.ended in ready:
                return None
            if self._stop.is_set():
                return Outcome.SANDBOX_UNAVAILABLE
            now = time.monotonic()
            if self._set_up is None:
                if now - self._began > _SETUP_SECONDS:
                    return Outcome.SANDBOX_UNAVAILABLE
            elif self._over_time(now):
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
            self._set_up = self._set_up or time.monotonic()
            self._started = time.monotonic() if received.startswith(MARKS) else None
        elif descriptor == self._status and self._first is None:
            self._find_first()
        return True

    def _find_first(self) -> None:
        line, complete, _ = bytes(self._received[self._status]).partition(b"\n")
        if not complete:
            return
        pid = int(json.loads(line)["child-pid"])
        with contextlib.suppress(OSError):  # it has ended already
            handle = os.pidfd_open(pid)
            # Only while it is bwrap's child is the number certain to be still its own.
            if self._leader.is_parent_of(pid):
                self._admit(FirstProcess(handle, pid))
            else:
                os.close(handle)

    def _admit(self, first: FirstProcess) -> None:
        """Into its control group, and then let it go on."""
        self._first = first
        if self._group is not None:
            self._group.add(first.pid)
        os.write(self._block, b".")

    def _over_output(self) -> bool:
        return any(len(self._received[stream]) > self._room[stream] for stream in (self._stdout, self._stderr))

    def _too_much_said(self) -> Outcome:
        # A compiler is silent but for errors, and a single one may fill pages.
        return Outcome.FAILED if self._started is None else Outcome.OUTPUT_LIMIT

    def _over_time(self, now: float) -> bool:
        if self._started is not None:
            return now - self._started > self._limits.time_limit_s
        return self._set_up is not None and now - self._set_up > self._limits.compile_limit_s

    def _over_memory(self) -> bool:
        if self._first is None:
            return False
        if self._group is not None and self._group.ran_out():
            return True
        mib = self._limits.compile_memory_mib if self._started is None else self._limits.memory_mib
        held = tree_bytes(self._first.pid, limit_bytes=mib * _MIB)
        self._peak_bytes = max(self._peak_bytes, held)
        return held > mib * _MIB

    def _kill(self) -> None:
        """Kill the first process, and with it all others; what started it then ends by itself."""
        if self._first is None:
            self._leader.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._first.handle, signal.SIGKILL)
        # Readable when the namespace is empty: its first process ends last.
        with selectors.DefaultSelector() as gone:
            gone.register(self._first.handle, selectors.EVENT_READ)
            gone.select(_DRAIN_SECONDS)

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._selector.get_map() and time.monotonic() < deadline:
            for key, _ in self._selector.select(_TICK_SECONDS):
                self._read(key.fd)

    def _ended(self, verdict: Outcome | None, *, ended_at: float, usage: Usage | None) -> ExecutionOutcome:
        if self._over_output() and verdict is None:
            verdict = self._too_much_said()
        told = self._told()
        exit_code = told.get("exit-code") if verdict is None else None
        stderr = self._text(self._stderr)
        if self._set_up is None or (verdict is None and exit_code is None):
            # After that standard error is the program's and none of ours.
            message = stderr if self._set_up is None else "it ended without telling the program's exit code"
            return ExecutionOutcome(outcome=Outcome.SANDBOX_UNAVAILABLE, stderr=message)
        if self._group is not None and self._group.ran_out():
            verdict = verdict or Outcome.OUT_OF_MEMORY
        peaks = [self._peak_bytes, told.get("peak_bytes", 0)]
        if usage is not None:
            peaks.append(usage.peak_bytes)
        if self._group is not None:
            peaks.append(self._group.peak_bytes())
        compiled_at = ended_at if self._started is None else self._started
        return ExecutionOutcome(
            outcome=verdict or self._outcome_of_exit(exit_code or 0, stderr=stderr),
            exit_code=exit_code,
            signal=None if exit_code is None else signal_of_exit(exit_code),
            duration_s=None if self._started is None else ended_at - self._started,
            compile_s=compiled_at - self._set_up if self._program.compile else None,
            cpu_s=told.get("cpu_s", usage and usage.cpu_s),
            peak_memory_mib=max(peaks) / _MIB,
            stdout=self._text(self._stdout),
            stderr=stderr,
        )

    def _outcome_of_exit(self, exit_code: int, *, stderr: str) -> Outcome:
        if self._started is None:
            # A compiler that fails is never what was expected, and the program's memory sign may be a line it quotes.
            return outcome_of_exit(exit_code, expected=0, stderr=stderr, memory_sign=None)
        return outcome_of_exit(
            exit_code, expected=self._expected_exit, stderr=stderr, memory_sign=self._program.memory_sign
        )

    def _told(self) -> dict[str, Any]:
        """All that the status lines say, without one that was cut."""
        told: dict[str, Any] = {}
        for line in bytes(self._received[self._status]).split(b"\n")[:-1]:
            told |= json.loads(line)
        return told

    def _text(self, stream: int) -> str:
        data = bytes(self._received[stream][: self._room[stream]])
        if stream == self._stdout:
            data = data.removeprefix(SET_UP).removeprefix(STARTED)
        return data.decode(errors="replace")

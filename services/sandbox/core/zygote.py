"""Python programs from a warm interpreter: no start-up for each, and yet namespaces of its own for each.

The interpreter runs in bubblewrap, without a network and with the files of any execution, so that nothing of the host
is in its reach or its memory; see :mod:`services.sandbox.core.zygote_main` for what it does there.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from privcode.errors import SandboxUnavailable
from privcode.results import ExecutionOutcome, Outcome
from privcode.sandbox import Execution, ExecutionResult, LanguageStatus
from privcode.specs import ExecutionLimits
from services.sandbox.core import zygote_main
from services.sandbox.core.bubblewrap import Bubblewrap, make_pipe, not_run, sealed_file
from services.sandbox.core.command import (
    MARKS,
    SANDBOX_ID,
    SHARED_MEMORY_BYTES,
    WORK_DIR,
    environment,
    isolation,
    program_limits,
    python_program,
    system_view,
)
from services.sandbox.core.interpreter import Interpreter
from services.sandbox.core.supervision import FirstProcess, Supervision, Usage, Watched
from services.sandbox.core.toolchains import PROGRAM_FOLDER

log = logging.getLogger(__name__)

# What programs import most: imported once, before any of them.
PRELOADED: Final = (
    "abc", "asyncio", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "inspect", "itertools", "json", "logging", "math", "operator", "os", "random",
    "re", "statistics", "string", "subprocess", "sys", "tempfile", "textwrap", "time", "typing", "unittest",
)  # fmt: skip
_READY_SECONDS: Final = 30.0
_MESSAGE_BYTES: Final = 64
_REASON_CHARACTERS: Final = 500
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# Below the folder that each program gets another of.
_MAIN: Final = f"{PROGRAM_FOLDER}/zygote.py"


class Zygote:
    """:class:`privcode.sandbox.Sandbox`: Python from a warm interpreter, every other language from ``bubblewrap``.

    All programs start with the same hash seed and the same addresses of code, those of the interpreter that they are
    forked from. Raises :class:`SandboxUnavailable` if the interpreter can't be started or can't execute a probe.
    """

    def __init__(self, *, bubblewrap: Bubblewrap, preloaded: Sequence[str] = PRELOADED) -> None:
        self._interpreter = bubblewrap.interpreter
        self._bubblewrap = bubblewrap
        self._preloaded = preloaded
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._process: _Interpreter | None = None
        probe = Execution(id="probe", language="python", code="import threading; threading.Thread(target=int).start()")
        result = self.run(probe, limits=ExecutionLimits(time_limit_s=30))
        if result.outcome is not Outcome.PASSED:
            self.close()
            raise SandboxUnavailable(f"the zygote can't execute a program here: {result.stderr.strip()}")

    def run(self, execution: Execution, *, limits: ExecutionLimits) -> ExecutionResult:
        if execution.language != "python":
            return self._bubblewrap.run(execution, limits=limits)
        ended = not_run("the runner is stopping") if self._closed.is_set() else self._execute(execution, limits)
        if ended.outcome is Outcome.SANDBOX_UNAVAILABLE:
            log.warning("an execution could not be done: %s", ended.stderr.strip())
        return ExecutionResult(id=execution.id, **ended.model_dump())

    def languages(self) -> list[LanguageStatus]:
        return self._bubblewrap.languages()

    def close(self) -> None:
        self._closed.set()
        self._bubblewrap.close()
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None

    def _execute(self, execution: Execution, limits: ExecutionLimits) -> ExecutionOutcome:
        program = python_program(execution.code, self._interpreter)
        try:
            with ExitStack() as cleanup:
                # The request too: a message has a largest size, which files can exceed.
                request, code, stdin = (
                    cleanup.enter_context(sealed_file(data)).fileno()
                    for data in (
                        json.dumps(_request(execution, limits)).encode(),
                        execution.code.encode(errors="surrogatepass"),
                        execution.stdin.encode(),
                    )
                )
                pipes = {name: make_pipe(cleanup) for name in ("stdout", "stderr", "status", "block")}
                theirs = [pipes["stdout"][1], pipes["stderr"][1], pipes["status"][1], pipes["block"][0]]
                handle = self._fork([request, code, stdin, *(end.fileno() for end in theirs)])
                for end in theirs:
                    end.close()
                first = FirstProcess(handle, _pid_of(handle))
                watched = Watched(
                    leader=_Forked(first),
                    first=first,
                    stdout=pipes["stdout"][0].fileno(),
                    stderr=pipes["stderr"][0].fileno(),
                    status=pipes["status"][0].fileno(),
                    block=pipes["block"][1].fileno(),
                    group=cleanup.enter_context(self._bubblewrap.group(program, limits)),
                    stop=self._closed,
                )
                return Supervision(
                    watched, program=program, limits=limits, expected_exit=execution.expected_exit
                ).wait()
        except (OSError, SandboxUnavailable, subprocess.SubprocessError) as error:
            return not_run(f"setting up the sandbox: {error}")

    def _fork(self, descriptors: Sequence[int]) -> int:
        """One at a time; a zygote that has ended is replaced, once."""
        with self._lock:
            for _ in range(2):
                self._process = self._process or self._start()
                try:
                    return self._process.fork(descriptors)
                except OSError:
                    last_words = self._process.close()
                    self._process = None
        raise SandboxUnavailable(f"the zygote has ended: {last_words}")

    def _start(self) -> _Interpreter:
        with ExitStack() as cleanup:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            cleanup.callback(theirs.close)
            syscall_filter, main = (
                cleanup.enter_context(sealed_file(data)).fileno()
                for data in (self._bubblewrap.syscall_filter, Path(zygote_main.__file__).read_bytes())
            )
            command = _command(
                self._bubblewrap.executable, self._interpreter, main=main, control=theirs.fileno(),
                syscall_filter=syscall_filter, preloaded=self._preloaded,
            )  # fmt: skip
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                pass_fds=(main, theirs.fileno(), syscall_filter), **self._bubblewrap.account,
            )  # fmt: skip
        started = _Interpreter(process, ours)
        ours.settimeout(_READY_SECONDS)
        try:
            ready = ours.recv(_MESSAGE_BYTES)
        except OSError:
            ready = b""
        if not ready:
            raise SandboxUnavailable(f"the zygote does not start: {started.close()}")
        return started


class _Interpreter:
    """The running zygote."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process = process
        self._control = control

    def fork(self, descriptors: Sequence[int]) -> int:
        """A pidfd of the first process of a new execution, which has ``descriptors``. Raises OSError."""
        socket.send_fds(self._control, [b"fork"], descriptors)
        answer, handles, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 1)
        if not answer or not handles:
            raise OSError("the zygote has ended")
        return handles[0]

    def close(self) -> str:
        """Returns its last words on standard error, where nothing but our own code's errors can be."""
        self._control.close()
        self._process.kill()
        _, message = self._process.communicate()
        return message.decode(errors="replace").strip()[-_REASON_CHARACTERS:]


class _Forked:
    """An execution that was forked by the zygote, as :class:`~services.sandbox.core.supervision.Leader`."""

    def __init__(self, first: FirstProcess) -> None:
        self.ended = first.handle

    def is_parent_of(self, _: int) -> bool:
        return False

    def kill(self) -> None:
        pass  # its first process is known from the start

    def reap(self, _: FirstProcess | None) -> Usage | None:
        return None  # the zygote reaps, and the first process tells what was used


def _command(
    bwrap: Path, interpreter: Interpreter, *, main: int, control: int, syscall_filter: int, preloaded: Sequence[str]
) -> list[str]:
    return [
        str(bwrap),
        # Its own root, with the right to make namespaces: another uid would cost a second user namespace, in which it
        # would have no right over its own pid namespace.
        *isolation(identity=0),
        *("--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETFCAP"),  # the latter to map its uid 0 to another
        *environment(interpreter),
        *system_view(interpreter, folders=()),
        *("--dir", WORK_DIR, "--ro-bind-data", str(main), _MAIN, "--remount-ro", "/"),
        *("--remount-ro", "/dev"),
        "--",
        *(str(interpreter.executable), "-I", _MAIN, str(control), str(syscall_filter), *preloaded),
    ]


def _request(execution: Execution, limits: ExecutionLimits) -> dict[str, object]:
    return {
        "uid": SANDBOX_ID,
        "files": dict(execution.files),
        "file_bytes": limits.file_size_mib * 2**20,
        "program_bytes": len(execution.code.encode(errors="surrogatepass")) + _PAGE_BYTES,
        "shared_memory_bytes": SHARED_MEMORY_BYTES,
        "marks": MARKS.decode(),
        "limits": {name.upper(): _bounds(value) for name, value in program_limits(limits, address_space=True).items()},
    }


def _bounds(value: str | int) -> tuple[int, int]:
    """Soft and hard limit from what prlimit(1) takes."""
    soft, _, hard = str(value).partition(":")
    return int(soft), int(hard or soft)


def _pid_of(handle: int) -> int:
    """The process of a pidfd by its number here, whatever namespace the pidfd was made in; -1 if it has ended."""
    for line in Path(f"/proc/self/fdinfo/{handle}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    return -1

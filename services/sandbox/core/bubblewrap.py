"""Untrusted programs in bubblewrap: namespaces, a system call filter and limits of their own for each execution."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from privcode.errors import SandboxUnavailable
from privcode.results import ExecutionOutcome, Outcome
from privcode.sandbox import Execution, ExecutionResult, LanguageStatus
from privcode.specs import ExecutionLimits
from services.sandbox.core.cgroups import Group, delegated_groups
from services.sandbox.core.command import (
    BUILD_MIB,
    SANDBOX_ID,
    Descriptors,
    Prepared,
    program_of,
    python_program,
    sandbox_command,
)
from services.sandbox.core.interpreter import Interpreter
from services.sandbox.core.seccomp import syscall_filter
from services.sandbox.core.supervision import FirstProcess, Supervision, Usage, Watched
from services.sandbox.core.toolchains import Installed, Toolchains

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER: Final = 36
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
# Starts a thread: on a kernel before 5.14 the process limit counts all of the user's processes and would refuse it.
_PROBE: Final = Execution(
    id="probe",
    language="python",
    code="import threading; thread = threading.Thread(target=int); thread.start(); thread.join()",
)
_PROBE_LIMITS: Final = ExecutionLimits(time_limit_s=30)
_REASON_CHARACTERS: Final = 200
_GROUP_PROCESSES: Final = 128  # bwrap's own, and the compiler's beside the program's


class Bubblewrap:
    """:class:`privcode.sandbox.Sandbox` over bwrap(1).

    A thread that calls :meth:`run` must outlive its call: the kernel kills an execution when the thread that started it
    ends. Raises :class:`SandboxUnavailable` if bwrap is missing or can't execute a probe.
    ``disables_userns`` tells whether bwrap's own switch against new user namespaces works here; the system call
    filter forbids them in any case.
    """

    def __init__(self, *, interpreter: Interpreter) -> None:
        found = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
        if found is None:
            raise SandboxUnavailable("bubblewrap (bwrap) is not installed; on Debian: apt-get install bubblewrap")
        self.executable = Path(found)
        self.interpreter = interpreter
        self.syscall_filter = syscall_filter()
        # For Popen. Root is exempt from the process limit; and a program that got out should not be root.
        # No environment: the sandbox's first process keeps bwrap's, for all in it to read.
        self.account: dict[str, Any] = {"env": {}, "cwd": "/"}
        if os.geteuid() == 0:
            self.account |= {"user": SANDBOX_ID, "group": SANDBOX_ID, "extra_groups": []}
        adopt_orphans()
        self._closed = threading.Event()
        self._groups = delegated_groups()
        self.disables_userns = True
        probe = python_program(_PROBE.code, interpreter)
        if self._probe(probe).outcome is not Outcome.PASSED:
            self.disables_userns = False
            ended = self._probe(probe)
            if ended.outcome is not Outcome.PASSED:
                raise SandboxUnavailable(f"bubblewrap can't execute a program here: {ended.stderr.strip()}")
        self._toolchains = Toolchains(probe=self._probe_toolchain, python=platform.python_version())

    @property
    def cgroups(self) -> str | None:
        """Which control groups hold executions; None where this process may make none."""
        return None if self._groups is None else self._groups.version

    def run(self, execution: Execution, *, limits: ExecutionLimits) -> ExecutionResult:
        if self._closed.is_set():
            ended = not_run("the runner is stopping")
        else:
            program = self._program(execution, limits)
            if program is None:
                ended = ExecutionOutcome(outcome=Outcome.UNSUPPORTED_LANGUAGE)
            else:
                ended = self._execute(program, execution=execution, limits=limits)
        if ended.outcome is Outcome.SANDBOX_UNAVAILABLE:
            log.warning("an execution could not be done: %s", ended.stderr.strip())
        return ExecutionResult(id=execution.id, **ended.model_dump())

    def languages(self) -> list[LanguageStatus]:
        return self._toolchains.statuses()

    def close(self) -> None:
        self._closed.set()

    @contextmanager
    def group(self, program: Prepared, limits: ExecutionLimits) -> Iterator[Group | None]:
        """A control group for one execution, where this process may make one."""
        if self._groups is None:
            yield None
            return
        memory_bytes = _group_mib(program, limits) * 2**20
        with self._groups.group(memory_bytes=memory_bytes, processes=_GROUP_PROCESSES + limits.processes) as group:
            yield group

    def _program(self, execution: Execution, limits: ExecutionLimits) -> Prepared | None:
        if execution.language == "python":
            return python_program(execution.code, self.interpreter)
        installed = self._toolchains.get(execution.language)
        if installed is None:
            return None
        return program_of(installed.toolchain.source(execution.code), installed, limits)

    def _execute(self, program: Prepared, *, execution: Execution, limits: ExecutionLimits) -> ExecutionOutcome:
        try:
            with ExitStack() as cleanup:
                code, stdin, syscall_filter = (
                    cleanup.enter_context(sealed_file(data)).fileno()
                    for data in (
                        program.code.encode(errors="surrogatepass"),
                        execution.stdin.encode(),
                        self.syscall_filter,
                    )
                )
                files = {
                    name: cleanup.enter_context(sealed_file(text.encode())).fileno()
                    for name, text in execution.files.items()
                }
                status, status_end = make_pipe(cleanup)
                block_end, block = make_pipe(cleanup)
                descriptors = Descriptors(
                    code=code, syscall_filter=syscall_filter, block=block_end.fileno(), status=status_end.fileno(),
                    files=files,
                )  # fmt: skip
                group = cleanup.enter_context(self.group(program, limits))
                bwrap = cleanup.enter_context(
                    subprocess.Popen(
                        sandbox_command(
                            bwrap=self.executable,
                            interpreter=self.interpreter,
                            program=program,
                            limits=limits,
                            descriptors=descriptors,
                            disable_userns=self.disables_userns,
                        ),
                        stdin=stdin,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        pass_fds=descriptors.all(),
                        **self.account,
                    )
                )
                cleanup.callback(bwrap.kill)
                status_end.close()
                block_end.close()
                assert bwrap.stdout is not None
                assert bwrap.stderr is not None
                watched = Watched(
                    leader=cleanup.enter_context(_Bwrap(bwrap)), first=None, stdout=bwrap.stdout.fileno(),
                    stderr=bwrap.stderr.fileno(), status=status.fileno(), block=block.fileno(), group=group,
                    stop=self._closed,
                )  # fmt: skip
                return Supervision(
                    watched, program=program, limits=limits, expected_exit=execution.expected_exit
                ).wait()
        except (OSError, subprocess.SubprocessError) as error:
            return not_run(f"setting up the sandbox: {type(error).__name__}")

    def _probe(self, program: Prepared) -> ExecutionOutcome:
        return self._execute(program, execution=_PROBE, limits=_PROBE_LIMITS)

    def _probe_toolchain(self, installed: Installed) -> str | None:
        ended = self._probe(program_of(installed.toolchain.source(installed.toolchain.probe), installed, _PROBE_LIMITS))
        if ended.outcome is Outcome.PASSED:
            return None
        return f"its probe ended as {ended.outcome.value}: {ended.stderr.strip()[:_REASON_CHARACTERS]}"


class _Bwrap:
    """A running bwrap as :class:`Leader`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.ended = os.pidfd_open(process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.ended)

    def is_parent_of(self, pid: int) -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        return f"\nPPid:\t{self._process.pid}\n" in status

    def kill(self) -> None:
        self._process.kill()

    def reap(self, first: FirstProcess | None) -> Usage | None:
        # bwrap leaves the first process to us, whose usage includes that of all in its namespace.
        self._process.wait()
        if first is not None:
            with contextlib.suppress(ChildProcessError):
                _, _, usage = os.wait4(first.pid, 0)
                return Usage(cpu_s=usage.ru_utime + usage.ru_stime, peak_bytes=usage.ru_maxrss * 1024)
        return None


def not_run(reason: str) -> ExecutionOutcome:
    return ExecutionOutcome(outcome=Outcome.SANDBOX_UNAVAILABLE, stderr=reason)


def _group_mib(program: Prepared, limits: ExecutionLimits) -> int:
    """What a control group may hold: the program or its compiler, and the files they write."""
    compiler = limits.compile_memory_mib + BUILD_MIB if program.compile else 0
    return max(limits.memory_mib, compiler) + limits.file_size_mib


def make_pipe(cleanup: ExitStack) -> tuple[BinaryIO, BinaryIO]:
    reading, writing = os.pipe()
    return cleanup.enter_context(os.fdopen(reading, "rb", 0)), cleanup.enter_context(os.fdopen(writing, "wb", 0))


def sealed_file(data: bytes) -> BinaryIO:
    """An anonymous file that nobody can change or enlarge any more, not even through /proc/self/fd, at its start."""
    file = os.fdopen(os.memfd_create("privcode", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb+", 0)
    try:
        file.write(data)
        file.seek(0)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        file.close()
        raise
    return file


def adopt_orphans() -> None:
    """Make this process the parent of what its children leave behind (PR_SET_CHILD_SUBREAPER, prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")

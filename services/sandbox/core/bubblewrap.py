"""Untrusted programs in bubblewrap: namespaces, a system call filter and limits of their own for each execution."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from privcode.errors import SandboxUnavailable
from privcode.results import Outcome
from privcode.sandbox import Execution, ExecutionResult
from privcode.specs import ExecutionLimits
from services.sandbox.core.command import SANDBOX_ID, Descriptors, sandbox_command
from services.sandbox.core.interpreter import Interpreter
from services.sandbox.core.seccomp import syscall_filter
from services.sandbox.core.supervision import Ended, Supervision

log = logging.getLogger(__name__)

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
# Starts a thread: on a kernel before 5.14 the process limit counts all of the user's processes and would refuse it.
_PROBE: Final = "import threading; thread = threading.Thread(target=int); thread.start(); thread.join()"
_PROBE_LIMITS: Final = ExecutionLimits(time_limit_s=30)


class Bubblewrap:
    """:class:`privcode.sandbox.Sandbox` over bwrap(1), for Python.

    Safe to call from several threads, each of which must outlive its call: the kernel kills an execution when the
    thread that started it ends. Raises :class:`SandboxUnavailable` if bwrap is missing or can't execute a probe.
    ``disables_userns`` tells whether bwrap's own switch against new user namespaces works here; the system call
    filter forbids them in any case.
    """

    def __init__(self, *, interpreter: Interpreter) -> None:
        found = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
        if found is None:
            raise SandboxUnavailable("bubblewrap (bwrap) is not installed; on Debian: apt-get install bubblewrap")
        self._bwrap = Path(found)
        self._interpreter = interpreter
        self._filter = syscall_filter()
        # Root is exempt from the process limit; and a program that got out should not be root.
        self._account = SANDBOX_ID if os.geteuid() == 0 else None
        self._closed = threading.Event()
        self.disables_userns = True
        if self._probe().outcome is not Outcome.PASSED:
            self.disables_userns = False
            probe = self._probe()
            if probe.outcome is not Outcome.PASSED:
                raise SandboxUnavailable(f"bubblewrap can't execute a program here: {probe.stderr.strip()}")

    def run(self, execution: Execution, *, limits: ExecutionLimits) -> ExecutionResult:
        """Run one program until it ends, reaches a limit, or :meth:`close` is called.

        A failure of the sandbox itself is the outcome ``sandbox_unavailable``, with its reason in ``stderr``.
        """
        if self._closed.is_set():
            ended = _not_run(Outcome.SANDBOX_UNAVAILABLE, reason="the runner is stopping")
        elif execution.language != "python":
            ended = _not_run(Outcome.UNSUPPORTED_LANGUAGE)
        else:
            ended = self._execute(execution.code, stdin=execution.stdin, limits=limits)
        if ended.outcome is Outcome.SANDBOX_UNAVAILABLE:
            log.warning("an execution could not be done: %s", ended.stderr.strip())
        return ExecutionResult(
            id=execution.id,
            outcome=ended.outcome,
            exit_code=ended.exit_code,
            duration_s=ended.duration_s,
            stdout=ended.stdout,
            stderr=ended.stderr,
        )

    def close(self) -> None:
        """Kill what runs. It, and whatever is asked for afterwards, ends as ``sandbox_unavailable``."""
        self._closed.set()

    def _execute(self, code: str, *, stdin: str, limits: ExecutionLimits) -> Ended:
        try:
            with ExitStack() as cleanup:
                code_file = cleanup.enter_context(_sealed_file(code.encode()))
                input_file = cleanup.enter_context(_sealed_file(stdin.encode()))
                filter_file = cleanup.enter_context(_sealed_file(self._filter))
                status, status_end = (cleanup.enter_context(os.fdopen(end, "rb", 0)) for end in os.pipe())
                descriptors = Descriptors(
                    code=code_file.fileno(), syscall_filter=filter_file.fileno(), status=status_end.fileno()
                )
                bwrap = cleanup.enter_context(
                    subprocess.Popen(
                        sandbox_command(
                            bwrap=self._bwrap,
                            interpreter=self._interpreter,
                            limits=limits,
                            descriptors=descriptors,
                            disable_userns=self.disables_userns,
                        ),
                        stdin=input_file,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        pass_fds=(descriptors.code, descriptors.syscall_filter, descriptors.status),
                        # The sandbox's first process keeps bwrap's environment, for all in it to read.
                        env={},
                        cwd="/",
                        user=self._account,
                        group=self._account,
                        extra_groups=None if self._account is None else [],
                    )
                )
                cleanup.callback(bwrap.kill)
                status_end.close()
                return Supervision(bwrap=bwrap, status=status.fileno(), limits=limits, stop=self._closed).wait()
        except (OSError, subprocess.SubprocessError) as error:
            return _not_run(Outcome.SANDBOX_UNAVAILABLE, reason=f"setting up the sandbox: {type(error).__name__}")

    def _probe(self) -> Ended:
        return self._execute(_PROBE, stdin="", limits=_PROBE_LIMITS)


def _not_run(outcome: Outcome, *, reason: str = "") -> Ended:
    return Ended(outcome=outcome, exit_code=None, duration_s=None, stdout="", stderr=reason)


def _sealed_file(data: bytes) -> BinaryIO:
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

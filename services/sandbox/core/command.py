"""The command line of one execution: what the sandbox consists of, and the limits inside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privcode.specs import ExecutionLimits
from services.sandbox.core.interpreter import Interpreter

SANDBOX_ID: Final = 65534
_WORK_DIR: Final = "/tmp"
_PROGRAM: Final = "/program/main.py"
_MIB: Final = 1024 * 1024
_OPEN_FILES: Final = 128
_STACK_BYTES: Final = 8 * _MIB
_SHARED_MEMORY_BYTES: Final = 1 * _MIB
_CPU_SLACK_S: Final = 1

# Below /usr only what runs programs: no /usr/local, no /usr/share but the time zones, which Python's zoneinfo reads.
_SYSTEM_FOLDERS: Final = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo")
_TOP_FOLDERS: Final = ("/bin", "/lib", "/lib32", "/lib64")

# The first byte of standard output, written after all is set up and before the program starts: what comes after it is
# the program's own doing, and a sandbox that never wrote it failed by itself.
STARTED: Final = b"."
_STARTER: Final = f'printf {STARTED.decode()}; exec "$@"'


@dataclass(frozen=True, kw_only=True)
class Descriptors:
    """Open file descriptors that the command uses: ``code`` and ``syscall_filter`` to read, ``status`` for bwrap's
    JSON."""

    code: int
    syscall_filter: int
    status: int


def sandbox_command(
    *,
    bwrap: Path,
    interpreter: Interpreter,
    limits: ExecutionLimits,
    descriptors: Descriptors,
    disable_userns: bool,
) -> list[str]:
    """Arguments that run the code behind ``descriptors.code`` in namespaces of its own. Standard output begins with
    :data:`STARTED`."""
    return [
        str(bwrap),
        *_isolation(disable_userns=disable_userns),
        *_environment(interpreter),
        *_files(interpreter, limits=limits, code=descriptors.code),
        *("--seccomp", str(descriptors.syscall_filter)),
        *("--json-status-fd", str(descriptors.status)),
        "--",
        *_resource_limits(limits),
        *("/bin/sh", "-c", _STARTER, "sh"),
        # -I: no environment, no user site, no working directory on the path.
        *(str(interpreter.executable), "-I", _PROGRAM),
    ]


def _isolation(*, disable_userns: bool) -> Iterator[str]:
    yield from ("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session")
    yield from ("--cap-drop", "ALL", "--uid", str(SANDBOX_ID), "--gid", str(SANDBOX_ID), "--hostname", "sandbox")
    if disable_userns:
        yield "--disable-userns"


def _environment(interpreter: Interpreter) -> Iterator[str]:
    yield "--clearenv"
    variables = {
        "HOME": _WORK_DIR,
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "TMPDIR": _WORK_DIR,
        # Each thread's own arena would reserve 64 MiB of the address space.
        "MALLOC_ARENA_MAX": "2",
    }
    if interpreter.library_path:
        variables["LD_LIBRARY_PATH"] = str(interpreter.library_path)
    for name, value in variables.items():
        yield from ("--setenv", name, value)


def _files(interpreter: Interpreter, *, limits: ExecutionLimits, code: int) -> Iterator[str]:
    for folder in _SYSTEM_FOLDERS:
        yield from ("--ro-bind-try", folder, folder)
    for folder in _TOP_FOLDERS:
        path = Path(folder)
        if path.is_symlink():  # the usual merged /usr
            yield from ("--symlink", str(path.readlink()), folder)
        else:
            yield from ("--ro-bind-try", folder, folder)
    if interpreter.source and interpreter.mount_point:
        yield from ("--ro-bind", str(interpreter.source), str(interpreter.mount_point))
    for hidden in interpreter.hidden:
        yield from ("--tmpfs", str(hidden), "--remount-ro", str(hidden))
    yield from ("--proc", "/proc", "--dev", "/dev")
    # Python's locks between processes live there; bwrap's own /dev would take any amount.
    yield from ("--size", str(_SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev")
    yield from ("--size", str(limits.file_size_mib * _MIB), "--tmpfs", _WORK_DIR, "--chdir", _WORK_DIR)
    yield from ("--ro-bind-data", str(code), _PROGRAM)
    # The root is a tmpfs without a bound, too.
    yield from ("--remount-ro", "/")


def _resource_limits(limits: ExecutionLimits) -> Iterator[str]:
    """Set inside the namespaces: a process limit set outside would count the processes of the runner's user as well."""
    cpu = math.ceil(limits.time_limit_s) + _CPU_SLACK_S
    yield "/usr/bin/prlimit"
    # SIGXCPU at the soft limit is told from the SIGKILL of memory; the hard one ends who ignores it.
    yield f"--cpu={cpu}:{cpu + 1}"
    yield f"--as={limits.memory_mib * _MIB}"
    yield f"--nproc={limits.processes + 1}"  # bwrap's own first process counts
    yield f"--fsize={limits.file_size_mib * _MIB}"
    yield f"--nofile={_OPEN_FILES}"
    yield f"--stack={_STACK_BYTES}"
    yield "--core=0"
    yield "--memlock=0"
    yield "--msgqueue=0"
    yield "--"

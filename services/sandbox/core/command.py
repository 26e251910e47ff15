"""The command line of one execution: what the sandbox consists of, and the limits inside it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privcode.specs import ExecutionLimits
from services.sandbox.core.interpreter import Interpreter
from services.sandbox.core.toolchains import BUILD_FOLDER, PROGRAM_FOLDER, Installed, Source

SANDBOX_ID: Final = 65534
WORK_DIR: Final = "/tmp"
_MIB: Final = 1024 * 1024
_OPEN_FILES: Final = 128
_STACK_BYTES: Final = 8 * _MIB
SHARED_MEMORY_BYTES: Final = 1 * _MIB
BUILD_MIB: Final = 64
_COMPILER_PROCESSES: Final = 128
_CPU_SLACK_S: Final = 1
MEMORY_ERROR: Final = re.compile(r"^MemoryError(?::.*)?\Z", re.MULTILINE)

# Below /usr only what runs programs: no /usr/local, no /usr/share but the time zones, which Python's zoneinfo reads.
_SYSTEM_FOLDERS: Final = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/share/zoneinfo")
_TOP_FOLDERS: Final = ("/bin", "/lib", "/lib32", "/lib64")

# The first bytes of standard output: the first after all is set up, the second when the compiler, where there is one,
# has succeeded. What comes after the second is the program's own; the compiler writes to standard error. A sandbox that
# never wrote the first failed by itself.
SET_UP: Final = b"."
STARTED: Final = b"+"
MARKS: Final = SET_UP + STARTED


@dataclass(frozen=True, kw_only=True)
class Descriptors:
    """Open file descriptors that the command uses: ``code``, ``syscall_filter``, ``block`` (bwrap waits for a byte
    there before it starts the program) and ``files`` by name to read, ``status`` for bwrap's JSON."""

    code: int
    syscall_filter: int
    block: int
    status: int
    files: Mapping[str, int]

    def all(self) -> tuple[int, ...]:
        return (self.code, self.syscall_filter, self.block, self.status, *self.files.values())


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is to be executed. ``compile``, ``run``: commands inside the sandbox, empty where there is nothing to do.
    ``folders``: of the host, to show beside the system's."""

    file: str
    code: str
    compile: Sequence[str]
    run: Sequence[str]
    address_space: bool
    folders: Sequence[str]
    memory_sign: re.Pattern[str] | None


def python_program(code: str, interpreter: Interpreter) -> Prepared:
    # -I: no environment, no user site, no working directory on the path.
    run = [str(interpreter.executable), "-I", f"{PROGRAM_FOLDER}/main.py"]
    return Prepared(
        file="main.py", code=code, compile=(), run=run, address_space=True, folders=(), memory_sign=MEMORY_ERROR
    )


def program_of(source: Source, installed: Installed, limits: ExecutionLimits) -> Prepared:
    return Prepared(
        file=source.file,
        code=source.code,
        compile=installed.compile_command(source, limits),
        run=installed.run_command(source, limits),
        address_space=installed.toolchain.address_space,
        folders=installed.folders,
        memory_sign=installed.toolchain.memory_sign,
    )


def sandbox_command(
    *,
    bwrap: Path,
    interpreter: Interpreter,
    program: Prepared,
    limits: ExecutionLimits,
    descriptors: Descriptors,
    disable_userns: bool,
) -> list[str]:
    """Arguments that run ``program``, whose code is behind ``descriptors.code``, in namespaces of its own."""
    return [
        str(bwrap),
        *isolation(),
        *(["--disable-userns"] if disable_userns else []),
        *environment(interpreter),
        *_files(interpreter, program=program, limits=limits, descriptors=descriptors),
        *("--seccomp", str(descriptors.syscall_filter)),
        *("--json-status-fd", str(descriptors.status), "--block-fd", str(descriptors.block)),
        "--",
        *("/bin/sh", "-c", _script(program, limits)),
    ]


def _script(program: Prepared, limits: ExecutionLimits) -> str:
    own_limits = _prlimit(program_limits(limits, address_space=program.address_space))
    # bwrap's first process has the program's uid and can be written to: it gets no more than the program has.
    lines = [f"{shlex.join([*own_limits[:-1], '--pid', '1'])} || exit", f"printf {SET_UP.decode()}"]
    if program.compile:
        compiler = [*_prlimit(_compiler_limits(limits)), *program.compile]
        lines.append(f"{shlex.join(compiler)} </dev/null >&2 || exit")
    lines.append(f"printf {STARTED.decode()}")
    if program.run:
        lines.append(f"exec {shlex.join([*own_limits, *program.run])}")
    return "\n".join(lines)


def isolation(*, identity: int = SANDBOX_ID) -> Iterator[str]:
    yield from ("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session")
    yield from ("--cap-drop", "ALL", "--uid", str(identity), "--gid", str(identity), "--hostname", "sandbox")


def environment(interpreter: Interpreter) -> Iterator[str]:
    yield "--clearenv"
    variables = {
        "HOME": WORK_DIR,
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "TMPDIR": WORK_DIR,
        # Each thread's own arena would reserve 64 MiB of the address space.
        "MALLOC_ARENA_MAX": "2",
    }
    if interpreter.library_path:
        variables["LD_LIBRARY_PATH"] = str(interpreter.library_path)
    for name, value in variables.items():
        yield from ("--setenv", name, value)


def system_view(interpreter: Interpreter, *, folders: Sequence[str]) -> Iterator[str]:
    """What every sandbox sees: the system's programs and libraries, the interpreter, its own /proc and /dev."""
    for folder in (*_SYSTEM_FOLDERS, *folders):
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


def _files(
    interpreter: Interpreter, *, program: Prepared, limits: ExecutionLimits, descriptors: Descriptors
) -> Iterator[str]:
    yield from system_view(interpreter, folders=program.folders)
    # Python's locks between processes live there; bwrap's own /dev would take any amount.
    yield from ("--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev")
    yield from ("--size", str(limits.file_size_mib * _MIB), "--tmpfs", WORK_DIR, "--chdir", WORK_DIR)
    if program.compile:
        yield from ("--size", str(BUILD_MIB * _MIB), "--tmpfs", BUILD_FOLDER)
    yield from ("--ro-bind-data", str(descriptors.code), f"{PROGRAM_FOLDER}/{program.file}")
    for name, descriptor in descriptors.files.items():
        yield from ("--file", str(descriptor), f"{WORK_DIR}/{name}")
    # The root is a tmpfs without a bound, too.
    yield from ("--remount-ro", "/")


def _prlimit(limits: Mapping[str, str | int]) -> list[str]:
    """Set inside the namespaces: a process limit set outside would count the processes of the runner's user as well."""
    return ["/usr/bin/prlimit", *(f"--{name}={value}" for name, value in limits.items()), "--"]


def program_limits(limits: ExecutionLimits, *, address_space: bool) -> dict[str, str | int]:
    bound = {"as": limits.memory_mib * _MIB} if address_space else {}
    return {
        **_common_limits(limits.time_limit_s),
        **bound,
        "nproc": limits.processes + 1,  # bwrap's own first process counts
        "fsize": limits.file_size_mib * _MIB,
    }


def _compiler_limits(limits: ExecutionLimits) -> dict[str, str | int]:
    return {**_common_limits(limits.compile_limit_s), "nproc": _COMPILER_PROCESSES, "fsize": BUILD_MIB * _MIB}


def _common_limits(seconds: float) -> dict[str, str | int]:
    cpu = math.ceil(seconds) + _CPU_SLACK_S
    return {
        # SIGXCPU at the soft limit is told from the SIGKILL of memory; the hard one ends who ignores it.
        "cpu": f"{cpu}:{cpu + 1}", "nofile": _OPEN_FILES, "stack": _STACK_BYTES, "core": 0, "memlock": 0, "msgqueue": 0,
    }  # fmt: skip

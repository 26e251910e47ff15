"""Inside the zygote's sandbox: a warm interpreter that forks one child for each program, into namespaces of its own.

    zygote ── fork ──> first process (pid 1 of the program's pid namespace) ── fork ──> program

The zygote and the first process are ours and hold capabilities; the program holds none. It can't reach either: they are
outside its user namespace, or not dumpable and immune to its signals. This file is shown to the sandbox by itself, so
it imports nothing of the project. Sources: namespaces(7), pid_namespaces(7), landlock(7), seccomp(2).
"""

import atexit
import builtins
import contextlib
import ctypes
import fcntl
import gc
import importlib
import importlib.machinery
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
import types
from pathlib import Path
from typing import Any, NoReturn

_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_PRIVATE, _MS_REC = 1 << 18, 1 << 14
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 22, 24, 38, 47
_SECCOMP_MODE_FILTER, _PR_CAP_AMBIENT_CLEAR_ALL, _CAPABILITY_VERSION_3, _LAST_CAPABILITY = 2, 4, 0x20080522, 40

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_FS_EXECUTE, _FS_READ_FILE, _FS_READ_DIR = 1, 4, 8
_FS_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}  # by version; from 5 on:
_FS_RIGHTS_5 = (1 << 16) - 1
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2  # from version 6 on

_PROGRAM = Path("/program/main.py")
_WORK_DIR, _SHARED_MEMORY = "/tmp", "/dev/shm"
_MESSAGE_BYTES = 64

_libc = ctypes.CDLL(None, use_errno=True)


class _Filter(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def main() -> None:
    """``main.py SOCKET FILTER MODULE…``: descriptors of the runner's socket and of the system call filter; what to
    import beforehand."""
    control = socket.socket(fileno=int(sys.argv[1]))
    with os.fdopen(int(sys.argv[2]), "rb") as file:
        syscall_filter = file.read()
    for module in sys.argv[3:]:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for first processes
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 7)
        if not message:
            return
        _check(_libc.unshare(_CLONE_NEWPID), "unshare")
        pid = os.fork()
        if pid == 0:
            control.close()
            _first_process(descriptors, syscall_filter)
        _check(_libc.setns(own_pids, _CLONE_NEWPID), "setns")
        handle = os.pidfd_open(pid)
        socket.send_fds(control, [b"forked"], [handle])
        for descriptor in (handle, *descriptors):
            os.close(descriptor)


def _first_process(descriptors: list[int], syscall_filter: bytes) -> NoReturn:
    """Set all up, fork the program, tell how it ended, and take whatever it left along."""
    asked, code, stdin, stdout, stderr, status, block = descriptors
    try:
        # Until it is in its control group; nobody watches it if the runner has let go.
        if not os.read(block, 1):
            os._exit(1)
        with os.fdopen(asked, "rb") as file:
            request = json.load(file)
        os.setsid()
        _mount(request, code)
        _unshare_rest(request["uid"])
        _raise_loopback()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pid = os.fork()
        if pid == 0:
            os.close(status)
            _program(request, (stdin, stdout, stderr), syscall_filter)
    except BaseException as error:
        # Without the name of a file, which is not ours.
        os.write(stderr, f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'no more is told'}".encode())
        os._exit(1)
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")
    for descriptor in (0, 1, 2, code, stdin, stdout, stderr, block):
        os.close(descriptor)
    while True:
        ended, how, usage = os.wait4(-1, 0)
        if ended == pid:
            break
    exit_code = os.waitstatus_to_exitcode(how)
    told = {
        "exit-code": exit_code if exit_code >= 0 else 128 - exit_code,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    os.write(status, json.dumps(told).encode() + b"\n")
    os._exit(0)


def _mount(request: dict[str, Any], code: int) -> None:
    """A mount namespace with a working directory, shared memory, /proc and the program of its own."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount /")
    plain = _MS_NOSUID | _MS_NODEV
    _mount_one("proc", "/proc", plain | _MS_NOEXEC)
    _mount_one("tmpfs", _SHARED_MEMORY, plain, f"size={request['shared_memory_bytes']}")
    _mount_one("tmpfs", "/program", plain, f"size={request['program_bytes']}")
    with os.fdopen(os.dup(code), "rb") as source:
        _PROGRAM.write_bytes(source.read())
    _mount_one("tmpfs", "/program", plain | _MS_REMOUNT | _MS_RDONLY)
    _mount_one("tmpfs", _WORK_DIR, plain, f"size={request['file_bytes']}")
    os.chdir(_WORK_DIR)
    for name, text in request["files"].items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def _mount_one(kind: str, target: str, flags: int, options: str = "") -> None:
    _check(_libc.mount(kind.encode(), target.encode(), kind.encode(), flags, options.encode()), f"mount {target}")


def _unshare_rest(uid: int) -> None:
    others = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWCGROUP
    _check(_libc.unshare(_CLONE_NEWUSER | others), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} 0 1"), ("gid_map", f"{uid} 0 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _program(request: dict[str, Any], streams: tuple[int, int, int], syscall_filter: bytes) -> NoReturn:
    """Become the program: its streams, its limits, no rights; then run it as ``python -I main.py`` would."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    _renounce(syscall_filter, request["limits"])
    gc.unfreeze()
    os.write(1, request["marks"].encode())
    _finish(_run())


def _renounce(syscall_filter: bytes, limits: dict[str, tuple[int, int]]) -> None:
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _landlock()
    for capability in range(_LAST_CAPABILITY + 1):
        _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl")
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl")
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    _check(_libc.capset(header, none), "capset")
    for name, (soft, hard) in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))
    instructions = ctypes.create_string_buffer(syscall_filter, len(syscall_filter))
    program = _Filter(len(syscall_filter) // 8, ctypes.addressof(instructions))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")


def _landlock() -> None:
    """Writing below the working directory and shared memory alone, signals and abstract sockets within; does nothing
    on a kernel without Landlock, since the namespaces say the same."""
    version = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return
    rights = _FS_RIGHTS.get(version, _FS_RIGHTS_5)
    scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= 6 else 0
    attributes = struct.pack("=QQQ", rights, 0, scoped)
    size = 24 if version >= 6 else 8
    rules = _check(_libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, size, 0), "landlock")
    reading = _FS_EXECUTE | _FS_READ_FILE | _FS_READ_DIR
    writing = (_WORK_DIR, _SHARED_MEMORY, "/dev", "/proc")  # of the last two only what the kernel lets everybody
    for folder, allowed in (("/", reading), *((folder, rights) for folder in writing)):
        beneath = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed & rights, beneath)
        _check(_libc.syscall(_LANDLOCK_ADD_RULE, rules, 1, rule, 0), "landlock")
        os.close(beneath)
    _check(_libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0), "landlock")
    os.close(rules)


def _run() -> int:
    """The program's exit code."""
    sys.argv = [str(_PROGRAM)]
    module = types.ModuleType("__main__")
    module.__dict__.update(
        __annotations__={}, __builtins__=builtins, __cached__=None, __file__=str(_PROGRAM),
        __loader__=importlib.machinery.SourceFileLoader("__main__", str(_PROGRAM)),
    )  # fmt: skip
    sys.modules["__main__"] = module
    try:
        code = compile(_PROGRAM.read_bytes(), str(_PROGRAM), "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 (it is what all this is for)
    except SystemExit as ended:
        return _exit_code(ended.code)
    except BaseException as error:
        trace = error.__traceback__
        error.__traceback__ = trace and trace.tb_next  # without this frame
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _exit_code(code: object) -> int:
    """As the interpreter reads ``SystemExit.code``."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _finish(exit_code: int) -> NoReturn:
    """The interpreter's end without taking modules apart, which would take longer than most programs."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:
            exit_code = exit_code or 120
    os._exit(exit_code)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


if __name__ == "__main__":
    main()

"""Outliving the execution, and reaching processes that are not the program's: the runner's and a sibling's."""

from __future__ import annotations

from typing import Final

from privcode.results import Outcome
from tests.security.attack import Attack, Wall

# A process that carries the mark, which the host looks for when the execution is over.
_MARKED: Final = 'os.execv("/bin/sh", ["sh", "-c", "sleep 20; true", host.mark])'

ATTACKS: Final = (
    Attack(
        name="daemon",
        tries="outlive the program by a double fork and a session of its own",
        walls=(Wall.PROCESSES,),
        program=f"""
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0: {_MARKED}
                os._exit(0)
            os.wait()
            print("TRIES", "a daemon")
        """,
    ),
    Attack(
        name="adopted-daemon",
        tries="the same, without a parent's death signal and below a reaper of its own",
        walls=(Wall.PROCESSES,),
        program=f"""
            import ctypes
            prctl = ctypes.CDLL(None).prctl
            print("TRIES", "subreaper", prctl(36, 1, 0, 0, 0), "death signal", prctl(1, 0, 0, 0, 0))
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0: {_MARKED}
                os._exit(0)
            os.wait()
        """,
    ),
    Attack(
        name="stopped-daemon",
        tries="leave a stopped process behind, which handles no signal",
        walls=(Wall.PROCESSES,),
        program="""
            import subprocess
            child = subprocess.Popen(["sh", "-c", "sleep 20; true", host.mark])
            child.send_signal(19)
            print("TRIES", "a stopped child", flush=True)
            os._exit(0)
        """,
    ),
    Attack(
        name="killed-with-children",
        tries="be killed at its limit, and have its children go on",
        walls=(Wall.PROCESSES, Wall.WATCH),
        program=f"""
            print("TRIES", "four processes", flush=True)
            os.fork(); os.fork()
            {_MARKED}
        """,
        ends=(Outcome.TIMED_OUT,),
        seconds=0.5,
    ),
    Attack(
        name="shell-daemon",
        tries="background processes of a shell, deaf to the end of their terminal",
        walls=(Wall.PROCESSES,),
        language="shell",
        program="""
            echo "TRIES nohup"
            for _ in 1 2 3; do setsid nohup sh -c 'sleep 20; true' "$mark" >/dev/null 2>&1 & done
            disown -a
        """,
    ),
    Attack(
        name="kill-parents",
        tries="kill the first process, the parent and the process group",
        walls=(Wall.PROCESSES,),
        program="""
            import signal
            parent = os.getppid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for target, number in ((0, signal.SIGTERM), (1, signal.SIGKILL), (parent, signal.SIGKILL)):
                print("TRIES", target, flush=True)
                try: os.kill(target, number)
                except OSError as error: print("REFUSED", error)
            time.sleep(0.1)
            check("parent is gone", os.getppid() != parent)
        """,
    ),
    Attack(
        name="kill-all",
        tries="kill every process that it may",
        walls=(Wall.PROCESSES,),
        program="attempt('all', lambda: os.kill(-1, 9))",
    ),
    Attack(
        name="kill-by-number",
        tries="kill the runner, the caller and a sibling by their numbers on the host",
        walls=(Wall.PROCESSES,),
        program="""
            import signal
            for pid in (host.sibling_pid, host.caller_pid, host.runner_pid):
                attempt(f"kill {pid}", lambda: os.kill(pid, signal.SIGKILL))
                attempt(f"pidfd {pid}", lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL))
        """,
    ),
    Attack(
        name="other-processes",
        tries="see any process but its own",
        walls=(Wall.PROCESSES,),
        program="""
            for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
                name = open(f"/proc/{pid}/comm").read().strip()
                check(f"{pid} {name}", int(pid) not in (1, os.getpid(), os.getppid()) or name == host.sibling_name)
        """,
    ),
    Attack(
        name="sibling-files",
        tries="read the files of an execution that runs at the same time",
        walls=(Wall.FILES, Wall.PROCESSES),
        program="""
            import glob
            for path in (f"/tmp/{host.sibling_name}", f"/dev/shm/{host.sibling_name}",
                         f"/proc/{host.sibling_pid}/root/tmp/{host.sibling_name}",
                         f"/proc/{host.sibling_pid}/cwd/{host.sibling_name}"):
                attempt(path, lambda: open(path).read())
            check("anywhere", bool(glob.glob(f"/proc/[0-9]*/cwd/{host.sibling_name}")))
        """,
    ),
    Attack(
        name="sibling-memory",
        tries="read and write the memory of another execution",
        walls=(Wall.PROCESSES, Wall.CALLS),
        program="""
            for file in ("mem", "maps", "environ", "fd", "stack"):
                attempt(file, lambda: os.stat(f"/proc/{host.sibling_pid}/{file}"))
        """,
    ),
    Attack(
        name="sibling-sockets",
        tries="connect to a port and an abstract socket on which another execution listens",
        walls=(Wall.NETWORK,),
        program="""
            import socket
            attempt("port", lambda: socket.create_connection(("127.0.0.1", host.sibling_port), timeout=1))
            attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\\0" + host.sibling_name))
        """,
    ),
    Attack(
        name="sibling-queues",
        tries="find the System V and POSIX message queues, semaphores and shared memory of another execution",
        walls=(Wall.IPC, Wall.CALLS),
        program="""
            import ctypes, platform
            libc = ctypes.CDLL(None, use_errno=True)
            def get(number, *arguments):
                if libc.syscall(number, *arguments) < 0: raise OSError(ctypes.get_errno(), "refused")
            x86 = platform.machine() == "x86_64"
            attempt("semaphores", lambda: get(64 if x86 else 190, host.sibling_key, 0, 0))
            attempt("messages", lambda: get(68 if x86 else 186, host.sibling_key, 0))
            attempt("memory", lambda: get(29 if x86 else 194, host.sibling_key, 0, 0))
            attempt("posix", lambda: get(240 if x86 else 180, host.sibling_name.encode(), 0, 0, 0))
        """,
    ),
    Attack(
        name="parent-memory",
        tries="find secrets in the memory of its parent and of the first process",
        walls=(Wall.PROCESSES, Wall.PROTOCOL),
        program="""
            import re
            secret = b"-".join((b"secret", b"of"))  # in two pieces, not to be found in the program's own text
            def search(pid):
                memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
                for start, end in re.findall(r"(?m)^(\\w+)-(\\w+) rw", open(f"/proc/{pid}/maps").read()):
                    first, behind = int(start, 16), int(end, 16)
                    try: yield secret in os.pread(memory, behind - first, first)
                    except OSError: continue
            for pid in (1, os.getppid()):
                print("TRIES", pid)
                try: check(f"secrets in {pid}", any(search(pid)))
                except OSError as error: print("REFUSED", error)
        """,
    ),
    Attack(
        name="trace",
        tries="trace its parent, and read its memory by system call",
        walls=(Wall.CALLS, Wall.PROCESSES),
        program="""
            import ctypes, platform
            libc = ctypes.CDLL(None, use_errno=True)
            x86 = platform.machine() == "x86_64"
            place = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
            for pid in (os.getppid(), 1, host.sibling_pid):
                for name, number, arguments in (
                    ("read", 310 if x86 else 270, (pid, place, 1, place, 1, 0)),
                    ("compare", 312 if x86 else 272, (pid, os.getpid(), 1, 0, 0)),
                    ("attach", 101 if x86 else 117, (16, pid, 0, 0)),
                ):
                    def call():
                        if libc.syscall(number, *arguments) < 0: raise OSError(ctypes.get_errno(), "refused")
                    attempt(f"{name} {pid}", call)
        """,
    ),
)

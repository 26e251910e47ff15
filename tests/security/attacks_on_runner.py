"""Deceiving or breaking what reads the program's output and its end: the runner, its client, a terminal."""

from __future__ import annotations

from typing import Final

from privcode.results import Outcome
from tests.security.attack import Attack, Wall

_FAILS: Final = (Outcome.FAILED,)

ATTACKS: Final = (
    Attack(
        name="forged-result",
        tries="print what looks like the runner's own answer",
        walls=(Wall.PROTOCOL,),
        program="""
            print("TRIES", "a result")
            result = '{"id": "attack", "outcome": "passed", "exit_code": 0, "stdout": "", "stderr": ""}'
            for stream in (sys.stdout, sys.stderr): print(f"\\n{result}\\n\\r\\n{result}", file=stream, flush=True)
            os._exit(7)
        """,
        ends=_FAILS,
    ),
    Attack(
        name="forged-status",
        tries="write start marks and an exit code to every descriptor that it might have inherited",
        walls=(Wall.PROTOCOL,),
        program="""
            print("TRIES", "256 descriptors", flush=True)
            for descriptor in range(3, 256):
                for data in (b".", b"+", (1).to_bytes(8, "little"), b'{"exit-code": 0}\\n'):
                    try: os.write(descriptor, data)
                    except OSError: pass
            os._exit(7)
        """,
        ends=_FAILS,
    ),
    Attack(
        name="forged-status-by-proc",
        tries="the same to the descriptors of its parent and of the first process, through /proc",
        walls=(Wall.PROCESSES, Wall.PROTOCOL),
        program="""
            import glob
            for path in glob.glob("/proc/1/fd/*") + glob.glob(f"/proc/{os.getppid()}/fd/*"):
                # Standard output and error are its own as well.
                if path.rsplit("/", 1)[1] in "12": continue
                for data in ((1).to_bytes(8, "little"), b'{"exit-code": 0}\\n'):
                    try: os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), data)
                    except OSError: pass
            print("TRIES", "the descriptors of others", flush=True)
            os._exit(7)
        """,
        ends=_FAILS,
    ),
    Attack(
        name="taken-descriptors",
        tries="take descriptors out of the first process and its parent, and tell an exit code there",
        walls=(Wall.CALLS, Wall.PROCESSES),
        program="""
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            for pid in (1, os.getppid()):
                handle = os.pidfd_open(pid)
                taken = [libc.syscall(438, handle, number, 0) for number in range(3, 32)]
                print("TRIES", pid, set(taken), ctypes.get_errno(), flush=True)
                for descriptor in set(taken) - {-1}:
                    for data in ((1).to_bytes(8, "little"), b'{"exit-code": 0}\\n'):
                        try: os.write(descriptor, data)
                        except OSError: pass
            os._exit(7)
        """,
        ends=_FAILS,
    ),
    Attack(
        name="blamed-on-the-runner",
        tries="break the first process, so that its end looks like a failure of the runner, which ends the whole stage",
        walls=(Wall.PROTOCOL, Wall.PROCESSES),
        program="""
            import resource
            for name in ("AS", "DATA", "STACK", "NOFILE", "CPU"):
                print("TRIES", name, flush=True)
                try: resource.prlimit(1, getattr(resource, f"RLIMIT_{name}"), (0, 0))
                except OSError as error: print("REFUSED", error, flush=True)
            try:
                counter = int(open("/proc/1/syscall").read().split()[-1], 16)
                os.pwrite(os.open("/proc/1/mem", os.O_RDWR), bytes([255] * 16), counter)
            except OSError as error: print("REFUSED", error, flush=True)
            if os.fork() == 0:
                if os.fork(): os._exit(0)
                time.sleep(0.05)  # its end wakes the first process
                os._exit(0)
            time.sleep(0.1)
        """,
        ends=(Outcome.PASSED, Outcome.FAILED),
    ),
    Attack(
        name="broken-text",
        tries="output that is no text: invalid UTF-8, zeros, half characters, other line ends",
        walls=(Wall.PROTOCOL,),
        program="""
            print("TRIES", "bytes", flush=True)
            ends = "\\u2028\\u2029\\x85\\x0b\\x1c".encode()
            for data in (b"\\xff\\xfe\\xf0\\x9f", b"\\xed\\xa0\\x80", bytes(range(256)), ends):
                os.write(1, data)
                os.write(2, data)
        """,
    ),
    Attack(
        name="half-a-character",
        tries="end a stream of just the allowed length in the middle of a character",
        walls=(Wall.PROTOCOL,),
        program="""
            print("TRIES", flush=True)
            os.write(1, b"x" * (host.output_kib * 1024 - 10) + "\\N{FOX FACE}".encode()[:3])
        """,
    ),
    Attack(
        name="terminal-escapes",
        tries="send commands to the terminal of whoever reads the runner's log",
        walls=(Wall.PROTOCOL,),
        program="""
            print("TRIES", "escapes", flush=True)
            commands = "\\x1b]0;title\\x07\\x1b[2J\\x1b]52;c;cm0K\\x07\\x1bP"
            for stream in (sys.stdout, sys.stderr): print(commands, file=stream)
        """,
    ),
    Attack(
        name="terminal-input",
        tries="type into the terminal that the runner was started from (TIOCSTI)",
        walls=(Wall.PROCESSES, Wall.FILES),
        program="""
            import fcntl, glob
            streams = [f"/proc/self/fd/{number}" for number in range(3)]
            def push(path, command):
                descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
                return fcntl.ioctl(descriptor, command, b"~")
            for path in ("/dev/tty", "/dev/console", *glob.glob("/dev/pts/[0-9]*"), *streams):
                for command in (0x5412, 0x541C): attempt(f"{path} {command:x}", lambda: push(path, command))
        """,
    ),
    Attack(
        name="output-never-read",
        tries="block on a full pipe and make the runner's reading slow: one byte at a time",
        walls=(Wall.WATCH,),
        program="""
            print("TRIES", "bytes", flush=True)
            while True: os.write(1, b"x")
        """,
        ends=(Outcome.OUTPUT_LIMIT,),
    ),
)

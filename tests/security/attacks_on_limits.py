"""Taking more time, memory, processes, files or output than is granted. Each stops by itself far above its limit."""

from __future__ import annotations

from typing import Final

from privcode.results import Outcome
from tests.security.attack import Attack, Wall

_SURVIVES: Final = """
            end = time.monotonic() + 3
            while time.monotonic() < end: time.sleep(0.1)
            print("ESCAPED the time limit")
"""

# System V message queues: number of the calls by machine, then as many as the kernel gives.
_QUEUES: Final = """
    import ctypes, platform
    get, send = (68, 69) if platform.machine() == "x86_64" else (186, 189)
    libc = ctypes.CDLL(None, use_errno=True)
    def call(*arguments):
        result = libc.syscall(*arguments)
        if result < 0: raise OSError(ctypes.get_errno(), "refused")
        return result
    def fill():
        held, message = 0, (1).to_bytes(8, "little") + bytes(8192)
        while held <= host.memory_mib << 20:
            queue = call(get, 0, 0o1600)
            for _ in range(2): held += 8192 + call(send, queue, message, 8192, 0o4000)
        return held
    attempt("queues", fill)
"""

# Overwrites what the first process executes when its wait is over, with a loop that forks 100 processes.
_TAKE_OVER: Final = """
    fork_100_times = bytes.fromhex("bb64000000 b839000000 0f05 85c0 7404 ffcb 75f1 b822000000 0f05 ebf7")
    def take_over():
        counter = int(open("/proc/1/syscall").read().split()[-1], 16)
        os.pwrite(os.open("/proc/1/mem", os.O_RDWR), fork_100_times, counter)
        if os.fork() == 0:
            if os.fork(): os._exit(0)
            time.sleep(0.05)
            os._exit(0)
        time.sleep(0.5)
    print("TRIES", "to run in the first process", flush=True)
    try: take_over()
    except OSError as error: print("REFUSED", error, flush=True)
    count = sum(name.isdigit() for name in os.listdir("/proc"))
    check(f"{count} processes", count > host.processes + 1)
"""

ATTACKS: Final = (
    Attack(
        name="sleep",
        tries="sleep past the time limit",
        walls=(Wall.WATCH,),
        program="""
            print("TRIES", "to sleep", flush=True)
        """
        + _SURVIVES,
        ends=(Outcome.TIMED_OUT,),
        seconds=0.5,
    ),
    Attack(
        name="busy-loop",
        tries="compute past the time limit, in all processes that it may have",
        walls=(Wall.WATCH, Wall.LIMITS),
        program="""
            print("TRIES", "to compute", flush=True)
            for _ in range(3): os.fork()
            end = time.monotonic() + 3
            while time.monotonic() < end: pass
            print("ESCAPED the time limit")
        """,
        ends=(Outcome.TIMED_OUT,),
        seconds=0.5,
    ),
    Attack(
        name="ignored-signals",
        tries="ignore or block every signal that can be",
        walls=(Wall.WATCH,),
        program="""
            import signal
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                try: signal.signal(number, signal.SIG_IGN)
                except OSError: pass
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            print("TRIES", "to survive", flush=True)
        """
        + _SURVIVES,
        ends=(Outcome.TIMED_OUT,),
        seconds=0.5,
    ),
    Attack(
        name="stopped",
        tries="stop itself, and be waited for for ever",
        walls=(Wall.WATCH,),
        program="""
            import signal
            print("TRIES", "to stop", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        """,
        ends=(Outcome.TIMED_OUT,),
        seconds=0.5,
    ),
    Attack(
        name="closed-output",
        tries="close its output, so that whoever reads it believes that it has ended",
        walls=(Wall.WATCH,),
        program="""
            print("TRIES", "to go on unseen", flush=True)
            for descriptor in (0, 1, 2): os.close(descriptor)
            end = time.monotonic() + 3
            while time.monotonic() < end: pass
            open(f"/tmp/{host.mark}", "x")
        """,
        ends=(Outcome.TIMED_OUT,),
        seconds=0.5,
    ),
    Attack(
        name="output-held-open",
        tries="leave a child behind that keeps the output open, so that its end never comes",
        walls=(Wall.PROCESSES, Wall.WATCH),
        program="""
            print("TRIES", "to be waited for", flush=True)
            if os.fork() == 0:
                os.setsid()
                time.sleep(3)
                print("ESCAPED the end of the program")
        """,
        seconds=1,
    ),
    Attack(
        name="fork-bomb",
        tries="more processes than granted",
        walls=(Wall.LIMITS, Wall.MEMORY),
        program="""
            def bomb():
                for number in range(200):
                    if os.fork() == 0: time.sleep(5); os._exit(0)
                return number
            attempt("200 processes", bomb)
        """,
    ),
    Attack(
        name="shell-fork-bomb",
        tries="the classic, which replaces each process that dies",
        walls=(Wall.LIMITS, Wall.WATCH),
        language="shell",
        program="""
            echo "TRIES to multiply"
            bomb() { bomb | bomb & }
            bomb 2>/dev/null
            sleep 3
            echo "ESCAPED the time limit"
        """,
        ends=(Outcome.TIMED_OUT, Outcome.FAILED),
        seconds=0.5,
    ),
    Attack(
        name="thread-bomb",
        tries="more threads than granted",
        walls=(Wall.LIMITS,),
        program="""
            import threading
            threading.stack_size(1 << 16)
            def bomb():
                for number in range(200): threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
                return number
            attempt("200 threads", bomb, RuntimeError)
        """,
    ),
    Attack(
        name="limits-raised",
        tries="raise its own limits",
        walls=(Wall.LIMITS, Wall.RIGHTS),
        program="""
            import resource
            for name in ("AS", "CORE", "CPU", "FSIZE", "MEMLOCK", "MSGQUEUE", "NOFILE", "NPROC", "STACK"):
                number = getattr(resource, f"RLIMIT_{name}")
                soft, hard = resource.getrlimit(number)
                check(f"{name} without a bound", hard == resource.RLIM_INFINITY)
                attempt(name, lambda: resource.setrlimit(number, (soft, hard + 1)), (OSError, ValueError))
        """,
    ),
    Attack(
        name="first-process-taken-over",
        tries="run its own code in the sandbox's first process, which may have other limits",
        walls=(Wall.LIMITS, Wall.PROCESSES),
        program=_TAKE_OVER,
        ends=(Outcome.PASSED, Outcome.TIMED_OUT),
        seconds=1,
        machine="x86_64",
    ),
    Attack(
        name="priority",
        tries="a higher priority, real-time scheduling, protection from the out-of-memory killer",
        walls=(Wall.RIGHTS, Wall.LIMITS),
        program="""
            attempt("nice", lambda: os.nice(-5))
            attempt("fifo", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
            attempt("order", lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1"))
        """,
    ),
    Attack(
        name="memory-at-once",
        tries="a gigabyte in one piece",
        walls=(Wall.LIMITS,),
        program="attempt('1 GiB', lambda: len(bytearray(1 << 30)), MemoryError)",
    ),
    Attack(
        name="memory-by-and-by",
        tries="memory in many small pieces",
        walls=(Wall.LIMITS, Wall.MEMORY),
        program="attempt('400 MiB', lambda: len([bytearray(1 << 16) for _ in range(6400)]), MemoryError)",
    ),
    Attack(
        name="memory-in-children",
        tries="as much as is granted, in each of eight processes",
        walls=(Wall.MEMORY,),
        program="""
            print("TRIES", "8 times 60 MiB", flush=True)
            for _ in range(8):
                if os.fork() == 0: held = bytearray(60 << 20); time.sleep(3); os._exit(0)
            time.sleep(2)
            print("ESCAPED")
        """,
        ends=(Outcome.OUT_OF_MEMORY,),
    ),
    Attack(
        name="mappings",
        tries="fill shared and private mappings",
        walls=(Wall.LIMITS,),
        program="""
            import mmap
            held = []
            def fill(flags):
                for _ in range(20):
                    held.append(mmap.mmap(-1, 20 << 20, flags=flags))
                    held[-1][::4096] = bytes(len(held[-1]) // 4096)
            attempt("shared", lambda: fill(mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))
            attempt("private", lambda: fill(mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        """,
    ),
    Attack(
        name="message-queues",
        tries="keep data in System V message queues, which are the kernel's memory and nobody's",
        walls=(Wall.CALLS, Wall.MEMORY),
        program=_QUEUES,
        ends=(Outcome.PASSED, Outcome.OUT_OF_MEMORY),
    ),
    Attack(
        name="working-directory-filled",
        tries="fill the working directory with many files",
        walls=(Wall.FILES,),
        program="""
            def fill():
                for number in range(100):
                    with open(f"file{number}", "wb", buffering=0) as file: file.write(bytes(1 << 20))
            attempt("100 MiB", fill)
        """,
    ),
    Attack(
        name="shared-memory-filled",
        tries="fill /dev/shm",
        walls=(Wall.FILES,),
        program="""
            def fill():
                for number in range(16):
                    with open(f"/dev/shm/{host.mark}-{number}", "wb", buffering=0) as file: file.write(bytes(1 << 20))
            attempt("16 MiB", fill)
        """,
    ),
    Attack(
        name="huge-file",
        tries="one huge file, written, sparse and reserved",
        walls=(Wall.LIMITS, Wall.FILES),
        program="""
            descriptor = os.open("file", os.O_RDWR | os.O_CREAT)
            attempt("sparse", lambda: os.ftruncate(descriptor, 1 << 34))
            attempt("far", lambda: os.pwrite(descriptor, b"x", 1 << 34))
            attempt("reserved", lambda: os.posix_fallocate(descriptor, 0, 1 << 26))
        """,
    ),
    Attack(
        name="core-dump",
        tries="leave an image of its memory on the host's disk",
        walls=(Wall.LIMITS,),
        program="""
            import resource
            resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
            child = os.fork() or os.abort()
            check("core dump", os.WCOREDUMP(os.waitpid(child, 0)[1]))
        """,
    ),
    Attack(
        name="descriptor-flood",
        tries="thousands of open files, pipes and sockets",
        walls=(Wall.LIMITS,),
        program="""
            import socket
            for kind, make in (("files", lambda: os.open("/dev/null", 0)), ("pipes", os.pipe),
                               ("sockets", lambda: os.dup(socket.socket().detach()))):
                held = []
                attempt(kind, lambda: [held.append(make()) for _ in range(500)] and len(held))
        """,
    ),
    Attack(
        name="output-flood",
        tries="more output than granted",
        walls=(Wall.WATCH,),
        program="""
            print("TRIES", "8 MiB", flush=True)
            for _ in range(128): os.write(1, b"x" * 65536)
            print("ESCAPED", file=sys.stderr)
        """,
        ends=(Outcome.OUTPUT_LIMIT,),
    ),
    Attack(
        name="error-flood",
        tries="the same on standard error, without a line's end",
        walls=(Wall.WATCH,),
        program="""
            print("TRIES", "8 MiB", flush=True)
            for _ in range(128): os.write(2, bytes(65536))
            print("ESCAPED")
        """,
        ends=(Outcome.OUTPUT_LIMIT,),
    ),
    Attack(
        name="compile-bomb",
        tries="have the compiler write much more than it was given",
        walls=(Wall.LIMITS, Wall.FILES, Wall.WATCH),
        language="cpp",
        program="""
            #include <cstdio>
            #pragma message "TRIES 256 MiB of data"
            char data[1 << 28] = {1};
            int main() { std::puts("ESCAPED"); }
        """,
        ends=(Outcome.FAILED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT),
    ),
)

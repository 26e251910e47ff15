"""The host as its attackers find it: with a secret, services that listen, and a sibling; and what became of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import psutil

from privcode.sandbox import Execution, ExecutionResult, RunnerClient
from privcode.specs import ExecutionLimits
from tests.contract.sandbox_runner import Runner
from tests.security.attack import ESCAPED, LIMITS, TRIES, Facts, program_text

SECRET: Final = "secret-of-the-host"
_SCRATCH: Final = ("/tmp", "/var/tmp", "/dev/shm")
_START_SECONDS: Final = 20

# Runs beside all attacks, with files, sockets and queues that they may not reach, until it is told to look at itself.
_SIBLING: Final = """
    import ctypes, platform, signal, socket
    files = [f"{folder}/{host.sibling_name}" for folder in ("/tmp", "/dev/shm")]
    for path in files:
        with open(path, "w") as file: file.write("mine")
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\\0" + host.sibling_name)
    abstract.listen()
    servers = [socket.create_server(("127.0.0.1", host.sibling_port)), abstract]
    libc = ctypes.CDLL(None)
    for get, arguments in ((64, (1, 0o1666)), (68, (0o1666,))) if platform.machine() == "x86_64" else ():
        libc.syscall(get, host.sibling_key, *arguments)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    libc.prctl(15, host.sibling_name.encode(), 0, 0, 0)
    signal.sigwait([signal.SIGUSR1])
    for server in servers:
        server.setblocking(False)
        try: print("visited by", server.accept())
        except BlockingIOError: pass
    print([open(path).read() for path in files])
"""
UNHARMED: Final = "['mine', 'mine']\n"


class Sibling:
    """An execution that runs beside the attacks. ``pid``: on the host."""

    def __init__(self, *, socket: Path, facts: Facts) -> None:
        self._name = str(facts["sibling_name"])
        execution = Execution(
            id="sibling", language="python", code=program_text(_SIBLING, language="python", facts=facts)
        )
        limits = ExecutionLimits(time_limit_s=600)
        self._pool = ThreadPoolExecutor(1)
        self._result = self._pool.submit(lambda: list(RunnerClient(socket).run([execution], limits=limits)))
        self.pid = self._started()

    def is_running(self) -> bool:
        return not self._result.done()

    def ended(self) -> ExecutionResult:
        """Let it end, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        (result,) = self._result.result()
        self._pool.shutdown()
        return result

    def _started(self) -> int:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            for process in psutil.process_iter(["name"]):
                if process.info["name"] == self._name:
                    return process.pid
            time.sleep(0.02)
        raise AssertionError(f"the sibling did not start: {self._result}")


class Services:
    """What listens on the host, in ``folder`` among other places; nobody may reach it."""

    def __init__(self, folder: Path, *, name: str, cleanup: ExitStack) -> None:
        unix_path = folder / "service"
        self._servers = {
            "TCP": socket.create_server(("127.0.0.1", 0)),
            "TCP over IPv6": socket.create_server(("::1", 0), family=socket.AF_INET6),
            "a Unix socket": _listening(str(unix_path)),
            "an abstract socket": _listening(f"\0{name}"),
        }
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind(("127.0.0.1", 0))
        for server in (*self._servers.values(), self._datagrams):
            server.setblocking(False)
            cleanup.enter_context(server)
        unix_path.chmod(0o777)
        self.facts: Facts = {
            "tcp_port": self._servers["TCP"].getsockname()[1],
            "tcp6_port": self._servers["TCP over IPv6"].getsockname()[1],
            "udp_port": self._datagrams.getsockname()[1],
            "unix_path": str(unix_path),
            "abstract_name": name,
        }

    def visits(self) -> Iterator[str]:
        for name, server in self._servers.items():
            with contextlib.suppress(BlockingIOError):
                server.accept()
                yield f"a connection to {name}"
        with contextlib.suppress(BlockingIOError):
            yield f"a datagram: {self._datagrams.recv(64)!r}"


class Host:
    """``facts``: what an attack's program may know of it."""

    def __init__(self, folder: Path, *, runner: Runner, cleanup: ExitStack) -> None:
        number = uuid.uuid4().hex[:7]
        self._mark = f"mark-{number}"
        self._secret = folder / "secret"
        self._secret.write_text(SECRET)
        self._secret.chmod(0o666)
        self._services = Services(folder, name=f"service-{number}", cleanup=cleanup)
        self._listing = sorted(folder.iterdir())
        self._runner = runner
        facts: Facts = {
            **self._services.facts,
            "mark": self._mark,
            "secret_file": str(self._secret),
            "project": str(Path(__file__).parents[2]),
            "runner_socket": str(runner.socket),
            "runner_pid": runner.process.pid,
            "caller_pid": os.getpid(),
            "sibling_name": f"sib-{number}",
            "sibling_port": 5000,
            "sibling_key": int(number, 16),
            "processes": LIMITS.processes,
            "memory_mib": LIMITS.memory_mib,
            "output_kib": LIMITS.output_kib,
        }
        self.sibling = Sibling(socket=runner.socket, facts=facts)
        cleanup.callback(self.sibling.ended)
        self.facts: Facts = {**facts, "sibling_pid": self.sibling.pid}

    def damage(self) -> Iterator[str]:
        """What an attack did to the host, in words; nothing, unless it escaped."""
        if self._secret.read_text() != SECRET or sorted(self._secret.parent.iterdir()) != self._listing:
            yield "the host's files have changed"
        yield from self._services.visits()
        if self._runner.process.poll() is not None:
            yield "the runner has ended"
        if not self.sibling.is_running():
            yield "the sibling has ended"
        yield from (f"a process is left: {process}" for process in _processes_with(self._mark))
        for folder in _SCRATCH:
            yield from (f"a file is left: {path}" for path in Path(folder).iterdir() if self._mark in path.name)
        log = self._runner.log.read_text()
        yield from (f"{word!r} is in the runner's log" for word in (TRIES, ESCAPED, "\x1b", self._mark) if word in log)


@contextmanager
def attacked_host(folder: Path, *, runner: Runner) -> Iterator[Host]:
    with ExitStack() as cleanup:
        yield Host(folder, runner=runner, cleanup=cleanup)


def _listening(address: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    return server


def _processes_with(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark in process.cmdline():
                yield process

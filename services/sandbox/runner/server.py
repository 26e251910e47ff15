"""The runner as a process: one Unix socket, no credentials, and an end with its parent."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from privcode.errors import SandboxUnavailable
from privcode.sandbox import Sandbox
from services.sandbox.core.bubblewrap import Bubblewrap
from services.sandbox.core.interpreter import running_interpreter
from services.sandbox.core.zygote import Zygote
from services.sandbox.runner.app import make_app
from services.sandbox.runner.privileges import reachable_interpreter

log = logging.getLogger(__name__)

_STOP_SECONDS: Final = 10


class _Server(uvicorn.Server):
    """Kills what runs before it waits for the answers to be written."""

    def __init__(self, config: uvicorn.Config, *, sandbox: Sandbox) -> None:
        super().__init__(config)
        self._sandbox = sandbox

    def stop(self) -> None:
        self._sandbox.close()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        # Without uvicorn's record of the signal, which would raise it again at the end: a stop that was asked for is
        # a success.
        self.stop()


def main(*, parent: int) -> None:
    """Serve until SIGTERM, SIGINT, or the end of the process ``parent``; exit with 1 and a message if that can't be.

    The socket appears when the runner is ready, that is after an execution has succeeded.
    """
    parser = argparse.ArgumentParser(prog="python -m services.sandbox.runner", description="Executes untrusted code.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on, for this user only")
    parser.add_argument("--concurrency", type=_positive, default=os.cpu_count() or 1, help="default: one per CPU")
    parser.add_argument("--sandbox", choices=sorted(_BACKENDS), default="bubblewrap", help="default: bubblewrap")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        sandbox, facts = _BACKENDS[arguments.sandbox]()
        listener = _listen(arguments.socket)
    except (SandboxUnavailable, OSError) as error:
        sys.exit(f"the sandbox runner can't start: {error}")
    health = {
        "status": "ok",
        "sandbox": arguments.sandbox,
        "python": ".".join(map(str, sys.version_info[:3])),
        "concurrency": arguments.concurrency,
        **facts,
    }
    try:
        with ThreadPoolExecutor(arguments.concurrency) as pool:
            config = uvicorn.Config(
                make_app(sandbox=sandbox, pool=pool, health=health),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=_STOP_SECONDS,
            )
            asyncio.run(_serve(_Server(config, sandbox=sandbox), listener=listener, parent=parent))
    finally:
        arguments.socket.unlink(missing_ok=True)


def _bubblewrap() -> tuple[Bubblewrap, dict[str, str | int | bool]]:
    sandbox = Bubblewrap(interpreter=reachable_interpreter(running_interpreter()))
    if not sandbox.disables_userns:
        log.warning("bwrap --disable-userns does not work here; the system call filter alone forbids user namespaces")
    return sandbox, {"disables_userns": sandbox.disables_userns, "cgroups": sandbox.cgroups or "none"}


def _zygote() -> tuple[Zygote, dict[str, str | int | bool]]:
    bubblewrap, facts = _bubblewrap()
    return Zygote(bubblewrap=bubblewrap), facts


# The sandbox, ready to execute, and what /healthz tells of it.
_BACKENDS: Final[Mapping[str, Callable[[], tuple[Sandbox, dict[str, str | int | bool]]]]] = {
    "bubblewrap": _bubblewrap,
    "zygote": _zygote,
}


async def _serve(server: _Server, *, listener: socket.socket, parent: int) -> None:
    # A parent-death signal would come when the *thread* that started us ends; a pidfd watches the process. Parent 0
    # means that we are the first process of a container.
    if parent:
        try:
            descriptor = os.pidfd_open(parent)
        except ProcessLookupError:
            return
        if os.getppid() != parent:  # the number was another's already
            return
        loop = asyncio.get_running_loop()

        def parent_ended() -> None:
            loop.remove_reader(descriptor)
            server.stop()

        loop.add_reader(descriptor, parent_ended)
    await server.serve(sockets=[listener])


def _listen(path: Path) -> socket.socket:
    """A socket at ``path`` that only this user can connect to. A dead runner's socket is replaced, a living one's
    raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    if path.is_socket():
        try:
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
    previous = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    finally:
        os.umask(previous)
    listener.listen()
    return listener


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value

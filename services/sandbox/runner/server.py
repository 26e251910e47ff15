"""The runner as a process: one Unix socket, no credentials, and an end with its parent."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from privcode.errors import SandboxUnavailable
from privcode.sandbox import Sandbox
from services.sandbox.runner.app import make_app
from services.sandbox.runner.backends import BACKENDS
from services.sandbox.runner.stdio import serve_stdio

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

    The socket appears when the runner is ready, that is after an execution has succeeded. With ``--stdio`` it serves
    its standard streams instead, until the end of its input (see :mod:`services.sandbox.runner.stdio`).
    """
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        backend = BACKENDS[arguments.sandbox](arguments)
        if arguments.languages:
            print(json.dumps([status.model_dump() for status in backend.sandbox.languages()]))
            backend.sandbox.close()
            return
        listener = _listen(arguments.socket) if arguments.socket else None
    except (SandboxUnavailable, OSError) as error:
        sys.exit(f"the sandbox runner can't start: {error}")
    health = {
        "status": "ok",
        "sandbox": arguments.sandbox,
        "python": ".".join(map(str, sys.version_info[:3])),
        "concurrency": arguments.concurrency,
        **backend.facts,
    }
    with ThreadPoolExecutor(arguments.concurrency) as pool:
        if listener is None:
            serve_stdio(sandbox=backend.sandbox, pool=pool, health=health)
            return
        config = uvicorn.Config(
            make_app(sandbox=backend.sandbox, batch=backend.batch, pool=pool, health=health),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        try:
            asyncio.run(_serve(_Server(config, sandbox=backend.sandbox), listener=listener, parent=parent))
        finally:
            arguments.socket.unlink(missing_ok=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.sandbox.runner", description="Executes untrusted code.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, help="Unix socket to listen on, for this user only")
    where.add_argument("--stdio", action="store_true", help="batches from standard input, results to standard output")
    where.add_argument("--languages", action="store_true", help="print what is executed here, as JSON, and end")
    parser.add_argument("--concurrency", type=_positive, default=os.cpu_count() or 1, help="default: one per CPU")
    parser.add_argument("--sandbox", choices=sorted(BACKENDS), default="bubblewrap", help="default: bubblewrap")
    parser.add_argument("--docker-image", help="the runner's image, for --sandbox docker")
    parser.add_argument("--docker-runtime", help="such as runsc; default: the engine's")
    return parser.parse_args()


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

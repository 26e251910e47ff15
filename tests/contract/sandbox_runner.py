"""Start the sandbox runner as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from privcode.results import Outcome
from privcode.sandbox import ExecutionResult

Run = Callable[..., ExecutionResult]
START_SECONDS = 60


@dataclass(frozen=True)
class Runner:
    process: subprocess.Popen[bytes]
    socket: Path
    log: Path


@contextmanager
def running_runner(folder: Path, *, sandbox: str = "bubblewrap", arguments: Sequence[str] = ()) -> Iterator[Runner]:
    """A runner that is ready, with a secret in the environment it was started with. Killed at the end."""
    socket, log = folder / "runner.sock", folder / "runner.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "services.sandbox.runner", "--socket", str(socket)),
                *("--concurrency", "2", "--sandbox", sandbox, *arguments),
            ],
            stdout=output,
            stderr=output,
            env={**os.environ, "PRIVCODE_DATABASE_URL": "secret-of-the-host"},
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not socket.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the runner did not start"
            time.sleep(0.05)
        yield Runner(process=process, socket=socket, log=log)
    finally:
        process.kill()
        process.wait()


# For a limit of 12 processes: 11 beside the program's own, told on its standard output.
FORK_BOMB = """
    import os, time
    born = 0
    try:
        while True:
            if os.fork() == 0:
                time.sleep(30); os._exit(0)
            born += 1
    except BlockingIOError:
        print(born, flush=True)
    while True:
        try: os.fork()
        except BlockingIOError: pass
"""


def output_of(result: ExecutionResult) -> str:
    assert result.outcome is Outcome.PASSED, f"{result.outcome} {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result.stdout

"""A runner that was started from a terminal: no program may type into it, nor paint on it."""

from __future__ import annotations

import os
import pty
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from privcode.results import Outcome
from privcode.sandbox import Execution, RunnerClient
from tests.security.attack import ESCAPED, LIMITS, TRIES, program_text
from tests.security.attack_table import ATTACKS

_START_SECONDS = 60
_ATTACKS = [attack for attack in ATTACKS if attack.name.startswith("terminal-")]


@contextmanager
def runner_on_a_terminal(socket: Path, *, backend: str) -> Iterator[bytearray]:
    """What stands on the terminal, once the runner has ended."""
    command = [sys.executable, "-m", "services.sandbox.runner", "--socket", str(socket), "--sandbox", backend]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    screen = bytearray()
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not socket.exists():
            assert time.monotonic() < deadline, "the runner did not start"
            time.sleep(0.05)
        yield screen
    finally:
        os.kill(pid, 15)
        os.waitpid(pid, 0)
        with suppress(OSError):  # at its end
            while chunk := os.read(terminal, 65536):
                screen += chunk
        os.close(terminal)


def test_nothing_reaches_the_terminal_that_the_runner_was_started_from(backend: str, socket_folder: Path) -> None:
    executions = [
        Execution(id=attack.name, language="python", code=program_text(attack.program, language="python", facts={}))
        for attack in _ATTACKS
    ]
    socket = socket_folder / "terminal.sock"
    with runner_on_a_terminal(socket, backend=backend) as screen:
        results = list(RunnerClient(socket).run(executions, limits=LIMITS))
    assert {result.outcome for result in results} == {Outcome.PASSED}
    assert all(TRIES in result.stdout and ESCAPED not in result.stdout for result in results)
    assert b"Started server process" in screen
    assert not [word for word in (b"\x1b", TRIES.encode(), b"~") if word in screen]

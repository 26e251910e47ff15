"""What happens when a process of the stack, or the stack's own, is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from privcode.demo import _clear


def _mentioning(home: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            about = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue
        if str(home).encode() in about and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: a pytest that starts meanwhile closes its parents to PostgreSQL's own user.
    with tempfile.TemporaryDirectory(prefix="pc-test-") as folder:
        yield Path(folder) / "home"


def _nothing_left(home: Path) -> None:
    deadline = time.monotonic() + 10
    while _mentioning(home):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.05)


@contextmanager
def _up(home: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "privcode.cli", "up", "--home", str(home), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        assert any("is ready at" in line for line in process.stdout), process.communicate()[1]
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_up_stops_when_one_of_its_processes_dies(home: Path) -> None:
    with _up(home) as process:
        (worker,) = [
            pid for pid in _mentioning(home) if b"services.synth.tasks" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(worker, signal.SIGKILL)
        assert process.stderr
        message = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert "worker-synth ended" in message
    assert "code stack_failed" in message
    _nothing_left(home)


def test_a_demo_that_was_killed_leaves_nothing_to_the_next(home: Path) -> None:
    with _up(home) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (queue,) = [int(pid) for pid in children if b"valkey-server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        process.kill()
        process.wait(timeout=10)
    # The queue's server outlives a parent that was killed; it holds nothing and the next stack has its own.
    os.kill(queue, signal.SIGTERM)
    assert _mentioning(home), "the database goes on without its parent"
    _clear(home)
    _nothing_left(home)

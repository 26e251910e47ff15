from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from finished_job import Finished, finished_job


@pytest.fixture
def finished() -> Finished:
    return finished_job()


@pytest.fixture(scope="session")
def runner_socket() -> Iterator[Path]:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed; `make sandbox` installs it")
    with tempfile.TemporaryDirectory() as folder:  # a Unix socket's path has at most 107 bytes
        path = Path(folder) / "runner.sock"
        runner = subprocess.Popen([sys.executable, "-m", "services.sandbox.runner", "--socket", str(path)])
        try:
            _wait_for(path, runner)
            yield path
        finally:
            runner.terminate()
            runner.wait()


def _wait_for(path: Path, runner: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert runner.poll() is None, "the runner ended"
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(os.fsencode(path)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("the runner did not start")

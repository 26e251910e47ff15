"""A runner for each backend, and a host for its programs to attack."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.sandbox_runner import Runner, running_runner
from tests.security.host_side import Host, attacked_host
from tests.security.remains import Remains, remains_of

BACKENDS = ("bubblewrap", "zygote")


@pytest.fixture(scope="module", params=BACKENDS)
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap (bwrap) is not installed: NO ATTACK IS TRIED; `make test` installs it")
    # Short: a Unix socket's path may have 107 characters, and pytest's own folders have long names.
    with (
        tempfile.TemporaryDirectory(prefix="privcode-") as folder,
        running_runner(Path(folder), sandbox=request.param) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def before(runner: Runner) -> Remains:
    return remains_of(runner.process.pid)


@pytest.fixture(scope="module")
def host(runner: Runner, before: Remains) -> Iterator[Host]:  # noqa: ARG001 (the sibling starts after it)
    with tempfile.TemporaryDirectory(prefix="privcode-host-") as folder:
        Path(folder).chmod(0o777)
        with attacked_host(Path(folder), runner=runner) as attacked:
            yield attacked

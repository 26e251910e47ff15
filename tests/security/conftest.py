"""A runner for each backend, and a host for its programs to attack."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.sandbox_runner import Runner, running_runner
from tests.security.attack import BACKENDS
from tests.security.host_side import Host, attacked_host
from tests.security.remains import Remains, remains_of


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap (bwrap) is not installed: NO ATTACK IS TRIED; `make test` installs it")
    return request.param


@pytest.fixture(scope="module")
def socket_folder(backend: str) -> Iterator[Path]:  # noqa: ARG001 (another for each: a killed runner's socket stays)
    # Short: a Unix socket's path may have 107 characters, and pytest's own folders have long names.
    with tempfile.TemporaryDirectory(prefix="privcode-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def runner(backend: str, socket_folder: Path) -> Iterator[Runner]:
    with running_runner(socket_folder, sandbox=backend) as started:
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

"""The sandbox runner, shared by the tests of one session."""

from __future__ import annotations

import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from sandbox_runner import Run, Runner, running_runner

from privcode.sandbox import Execution, ExecutionResult, RunnerClient
from privcode.specs import ExecutionLimits


@pytest.fixture(scope="session")
def socket_folder() -> Iterator[Path]:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap (bwrap) is not installed: NOTHING OF THE SANDBOX IS TESTED; `make test` installs it")
    # Short: a Unix socket's path may have 107 characters, and pytest's own folders have long names.
    with tempfile.TemporaryDirectory(prefix="privcode-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session", params=["bubblewrap", "zygote"])
def runner(request: pytest.FixtureRequest, socket_folder: Path) -> Iterator[Runner]:
    folder = socket_folder / request.param
    folder.mkdir()
    with running_runner(folder, sandbox=request.param) as started:
        yield started


@pytest.fixture
def run(runner: Runner) -> Run:
    """Execute one program; keywords are limits, and what an :class:`Execution` has."""

    def execute(
        code: str,
        *,
        stdin: str = "",
        language: str = "python",
        files: Mapping[str, str] = MappingProxyType({}),
        expected_exit: int = 0,
        **limits: float,
    ) -> ExecutionResult:
        execution = Execution(
            id="one",
            language=language,
            code=textwrap.dedent(code),
            stdin=stdin,
            files=files,
            expected_exit=expected_exit,
        )
        asked = ExecutionLimits.model_validate(limits)
        (result,) = RunnerClient(runner.socket).run([execution], limits=asked)
        assert result.id == "one"
        return result

    return execute

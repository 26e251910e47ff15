"""A sandbox that can't be had is an error of ours with a reason, never a program's failure."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path, PurePosixPath

import pytest

from privcode.errors import SandboxUnavailable
from privcode.results import Outcome
from privcode.sandbox import Execution
from privcode.specs import ExecutionLimits
from services.sandbox.core import bubblewrap
from services.sandbox.core.bubblewrap import Bubblewrap
from services.sandbox.core.interpreter import Interpreter

SYSTEM_SHELL = Interpreter(
    executable=PurePosixPath("/usr/bin/true"), source=None, mount_point=None, hidden=(), library_path=None
)
needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap (bwrap) is not installed; `make test` installs it"
)


def test_without_bwrap_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda *_, **__: None)
    with pytest.raises(SandboxUnavailable, match=r"bwrap.*not installed"):
        Bubblewrap(interpreter=SYSTEM_SHELL)


@needs_bwrap
def test_a_sandbox_that_can_not_be_set_up_is_refused_at_the_start(tmp_path: Path) -> None:
    broken = dataclasses.replace(SYSTEM_SHELL, source=tmp_path / "gone", mount_point=PurePosixPath("/opt/python"))
    with pytest.raises(SandboxUnavailable, match="gone"):
        Bubblewrap(interpreter=broken)


@needs_bwrap
def test_an_interpreter_that_does_not_start_is_refused_at_the_start() -> None:
    with pytest.raises(SandboxUnavailable, match="no-such-python"):
        Bubblewrap(interpreter=dataclasses.replace(SYSTEM_SHELL, executable=PurePosixPath("/usr/bin/no-such-python")))


@needs_bwrap
def test_what_fails_later_is_sandbox_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sandbox = Bubblewrap(interpreter=SYSTEM_SHELL)
    program = Execution(id="one", language="python", code="pass")
    assert sandbox.run(program, limits=ExecutionLimits()).outcome is Outcome.PASSED
    gone = dataclasses.replace(SYSTEM_SHELL, source=tmp_path / "gone", mount_point=PurePosixPath("/opt/python"))
    monkeypatch.setattr(sandbox, "interpreter", gone)
    result = sandbox.run(program, limits=ExecutionLimits())
    assert (result.outcome, result.exit_code, result.duration_s) == (Outcome.SANDBOX_UNAVAILABLE, None, None)
    monkeypatch.setattr(sandbox, "executable", tmp_path / "no-bwrap")
    assert sandbox.run(program, limits=ExecutionLimits()).outcome is Outcome.SANDBOX_UNAVAILABLE


@needs_bwrap
def test_a_closed_sandbox_executes_nothing() -> None:
    sandbox = Bubblewrap(interpreter=SYSTEM_SHELL)
    sandbox.close()
    result = sandbox.run(Execution(id="one", language="python", code="pass"), limits=ExecutionLimits())
    assert result.outcome is Outcome.SANDBOX_UNAVAILABLE

"""Escape suite: each attack must have tried, must have failed, and must have left the host and a sibling unharmed."""

from __future__ import annotations

import platform
import time

import pytest

from privcode.results import Outcome
from privcode.sandbox import Execution, ExecutionResult, RunnerClient
from tests.contract.sandbox_runner import Runner
from tests.security.attack import ESCAPED, LIMITS, TRIES, Attack, program_text
from tests.security.attack_table import ATTACKS
from tests.security.host_side import SECRET, UNHARMED, Host
from tests.security.remains import Remains, remains_of

# Over an attack's own limit, for setting up and for killing it.
_SLACK_SECONDS = 4


def executed(program: str, attack: Attack, *, runner: Runner, host: Host) -> ExecutionResult:
    execution = Execution(
        id="attack",
        language=attack.language,
        code=program_text(program, language=attack.language, facts=host.facts),
        files=attack.files,
        stdin="standard input\n",
    )
    limits = LIMITS.model_copy(update={"time_limit_s": attack.seconds})
    began = time.monotonic()
    (result,) = RunnerClient(runner.socket).run([execution], limits=limits)
    assert time.monotonic() - began < attack.seconds + limits.compile_limit_s * bool(result.compile_s) + _SLACK_SECONDS
    if result.outcome is Outcome.UNSUPPORTED_LANGUAGE:
        pytest.skip(f"no tool chain for {attack.language} here")
    return result


def assert_tried_and_failed(result: ExecutionResult, *, ends: tuple[Outcome, ...]) -> None:
    said = f"{result.outcome} {result.exit_code}\n{result.stdout}\n{result.stderr}"
    assert ESCAPED not in said, said
    assert SECRET not in said, said
    assert TRIES in said, said
    assert result.outcome in ends, said


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_attack(attack: Attack, runner: Runner, host: Host) -> None:
    if attack.machine not in ("", platform.machine()):
        pytest.skip(f"an attack on {attack.machine}")
    assert_tried_and_failed(executed(attack.program, attack, runner=runner, host=host), ends=attack.ends)
    if attack.then:
        assert_tried_and_failed(executed(attack.then, attack, runner=runner, host=host), ends=(Outcome.PASSED,))
    assert list(host.damage()) == []


def test_nothing_is_left_and_the_runner_serves_on(runner: Runner, host: Host, before: Remains) -> None:
    assert host.sibling.ended().stdout == UNHARMED
    clean = Execution(id="clean", language="python", code="print('clean')")
    (result,) = RunnerClient(runner.socket).run([clean], limits=LIMITS)
    assert (result.outcome, result.stdout, result.stderr) == (Outcome.PASSED, "clean\n", "")
    assert remains_of(runner.process.pid) == before

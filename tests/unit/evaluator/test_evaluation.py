"""pass@1 through the real sandbox: right solutions pass, wrong ones and cheats fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from privcode.errors import SandboxUnavailable
from privcode.results import Outcome
from privcode.sandbox import Execution, ExecutionResult, RunnerClient
from privcode.specs import ExecutionLimits
from services.evaluator.core.evaluation import Execute, score, verify
from services.evaluator.core.humaneval import Task, read_tasks

TASK = read_tasks()[2]  # truncate_number(number)
RIGHT = "def truncate_number(number):\n    return number % 1.0\n"


@pytest.fixture(scope="module")
def client(runner_socket: Path) -> RunnerClient:
    return RunnerClient(runner_socket)


@pytest.fixture(scope="module")
def execute(client: RunnerClient) -> Execute:
    return lambda programs: client.run(programs, limits=ExecutionLimits(time_limit_s=10))


def _outcome(code: str, execute: Execute, *, task: Task = TASK) -> Outcome:
    (sample,) = verify([task], [f"```python\n{code}\n```"], model="tuned", execute=execute)
    return sample.outcome


def test_every_canonical_solution_passes(execute: Execute) -> None:
    tasks = read_tasks()
    completions = [f"```python\n{task.prompt}{task.canonical_solution}\n```" for task in tasks]
    samples = verify(tasks, completions, model="base", execute=execute)
    assert [(sample.task_id, sample.outcome) for sample in samples if sample.outcome is not Outcome.PASSED] == []
    assert score(samples, benchmark="humaneval", model="base").pass_at_1.successes == 164


def test_no_empty_solution_passes(execute: Execute) -> None:
    tasks = read_tasks(limit=30)
    samples = verify(tasks, ["    pass\n"] * len(tasks), model="base", execute=execute)
    assert Counter(sample.outcome for sample in samples) == {Outcome.FAILED: 30}


@pytest.mark.parametrize(
    "body",
    [
        "exit()", "exit(0)", "import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit",
        "return number", "return None", "print('passed'); exit(0)", "import os; os.kill(os.getpid(), 9)",
        "import atexit; atexit.register(print, 'x'); return 0",
    ],
)  # fmt: skip
def test_cheats_and_wrong_solutions_fail(body: str, execute: Execute) -> None:
    assert _outcome(f"def truncate_number(number):\n    {body}\n", execute) is not Outcome.PASSED


def test_a_right_solution_passes_even_if_it_prints(execute: Execute) -> None:
    assert _outcome(RIGHT, execute) is Outcome.PASSED
    assert (
        _outcome(RIGHT.replace("    return", "    print('no newline', end='')\n    return"), execute) is Outcome.PASSED
    )


def test_what_is_printed_after_the_nonce_voids_it(execute: Execute) -> None:
    code = f"import atexit\n_late = atexit.register(print, 'late')\n{RIGHT}"
    assert _outcome(code, execute) is Outcome.FAILED


def test_a_loop_ends_and_counts_as_a_loss(client: RunnerClient) -> None:
    code = "def truncate_number(number):\n    while True: pass\n"
    limits = ExecutionLimits(time_limit_s=0.5)
    assert _outcome(code, lambda programs: client.run(programs, limits=limits)) is Outcome.TIMED_OUT


def test_an_answer_without_code_is_not_run() -> None:
    def execute(programs: Sequence[Execution]) -> Iterator[ExecutionResult]:
        assert programs == []
        return iter(())

    (sample,) = verify([TASK], [""], model="base", execute=execute)
    assert sample.outcome is Outcome.NO_CODE
    assert score([sample], benchmark="humaneval", model="base").pass_at_1.n == 1


def test_what_the_sandbox_could_not_run_is_excluded_and_counted() -> None:
    tasks = read_tasks(limit=5)

    def execute(programs: Sequence[Execution]) -> Iterator[ExecutionResult]:
        for program, outcome in zip(programs, [Outcome.SANDBOX_UNAVAILABLE] * 2 + [Outcome.FAILED] * 3, strict=True):
            yield ExecutionResult(
                id=program.id, outcome=outcome
            )  # fmt: skip

    result = score(
        verify(tasks, [task.canonical_solution for task in tasks], model="tuned", execute=execute),
        benchmark="humaneval",
        model="tuned",
    )
    assert (result.pass_at_1.n, result.pass_at_1.excluded, result.pass_at_1.value) == (3, 2, 0.0)
    assert result.outcomes == {"failed": 3, "sandbox_unavailable": 2}


def test_without_a_runner_there_is_no_score(tmp_path: Path) -> None:
    client = RunnerClient(tmp_path / "none.sock")
    with pytest.raises(SandboxUnavailable):
        _outcome(RIGHT, lambda programs: client.run(programs, limits=ExecutionLimits()))

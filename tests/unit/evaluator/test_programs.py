"""From a completion to a program, without running it."""

from __future__ import annotations

import ast

import pytest

from services.evaluator.core.humaneval import Task, read_tasks
from services.evaluator.core.programs import solution_code, verification_program

TASK = Task(
    task_id="T/0",
    prompt=(
        "from typing import List\n\n\ndef helper(x):\n    return x\n\n\n"
        'def total(xs: List[int]) -> int:\n    """Sum of xs.\n    """\n'
    ),
    entry_point="total",
    canonical_solution="    return sum(xs)\n",
    test="def check(candidate):\n    assert candidate([1, 2]) == 3\n",
)
FUNCTION = "def total(xs):\n    return sum(xs)\n"


def _passes(code: str) -> bool:
    # Only code of this file is executed here; generated code never is.
    space: dict[str, object] = {}
    exec(compile(verification_program(TASK, code, nonce="n"), "test", "exec"), space)  # noqa: S102
    return True


def test_the_benchmark_is_read_in_its_order() -> None:
    tasks = read_tasks()
    assert len(tasks) == 164
    assert [task.task_id for task in tasks] == [f"HumanEval/{number}" for number in range(164)]
    assert read_tasks(limit=3) == tasks[:3]
    for task in tasks:
        assert task.prompt.strip() in task.problem
        assert task.canonical_solution not in task.problem
        ast.parse(task.preamble)
        assert task.prompt.startswith(task.preamble)


@pytest.mark.parametrize(
    "completion",
    [
        f"Here:\n```python\n{FUNCTION}```\nIt adds.",
        f"```python\n{FUNCTION}\nprint(total([1]))\nassert total([1]) == 7\n```",
        f"```python\n{FUNCTION}\nif __name__ == '__main__':\n    total(input())\n```",
        f"```python\nfrom __future__ import annotations\nimport math\n\n{FUNCTION}```",
        f"```python\n{FUNCTION}\nThis function adds up",  # the token limit cut it
        f"```python\n{FUNCTION}\ndef other(",
        f"```\r\n{FUNCTION.replace(chr(10), chr(13) + chr(10))}```\r\n",
        FUNCTION,
        f"{FUNCTION}\nThis function adds.",
        "    return sum(xs)\n",
        "    return sum(xs)\n\nQuestion: What next?\n",
        "```python\nreturn sum(xs)\n```",
        "```python\n    result = 0\n    for x in xs:\n        result += x\n    return result\n```",
        "```python\ndef total(xs: List[int]) -> int:\n    return helper(sum(xs))\n```",
    ],
)
def test_right_answers_in_any_form(completion: str) -> None:
    assert _passes(solution_code(TASK, completion))


@pytest.mark.parametrize("completion", ["", "  \n\n", "```python\n"])
def test_no_code(completion: str) -> None:
    assert solution_code(TASK, completion) == ""


def test_what_is_not_python_stays_an_error() -> None:
    code = solution_code(TASK, "```python\ndef other(:\n```")
    with pytest.raises(SyntaxError):
        _passes(code)


def test_another_function_is_not_the_solution() -> None:
    code = solution_code(TASK, "```python\ndef other(xs):\n    return sum(xs)\n```")
    with pytest.raises(AssertionError):
        _passes(code)


def test_every_canonical_solution_survives_extraction_as_block_and_as_body() -> None:
    for task in read_tasks():
        for completion in (f"```python\n{task.prompt}{task.canonical_solution}\n```", task.canonical_solution):
            tree = ast.parse(solution_code(task, completion))
            defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            assert task.entry_point in defined, task.task_id

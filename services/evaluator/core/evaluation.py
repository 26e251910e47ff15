"""pass@1 of one model on one benchmark: completions in, verified outcomes out."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from privcode.results import BenchmarkScore, Outcome, Result, wilson
from privcode.sandbox import Execution, ExecutionResult
from services.evaluator.core.humaneval import Task
from services.evaluator.core.programs import solution_code, verification_program, verified_outcome

Execute = Callable[[Sequence[Execution]], Iterable[ExecutionResult]]
EvaluatedModel = Literal["base", "tuned"]


class EvaluationSample(Result):
    """One completion of one task, with the code that was taken out of it and how that fared."""

    task_id: str
    model: EvaluatedModel
    completion: str
    code: str
    outcome: Outcome


def verify(
    tasks: Sequence[Task], completions: Sequence[str], *, model: EvaluatedModel, execute: Execute
) -> list[EvaluationSample]:
    """Run each task's completion against its test; samples in the order of the tasks.

    ``execute`` runs untrusted programs. A completion without code is ``no_code`` and is not run.
    """
    codes = {task.task_id: solution_code(task, text) for task, text in zip(tasks, completions, strict=True)}
    nonces = {task.task_id: secrets.token_hex(16) for task in tasks}
    programs = [
        Execution(
            id=task.task_id,
            language="python",
            code=verification_program(task, codes[task.task_id], nonce=nonces[task.task_id]),
        )
        for task in tasks
        if codes[task.task_id]
    ]
    outcomes = {result.id: verified_outcome(result, nonce=nonces[result.id]) for result in execute(programs)}
    return [
        EvaluationSample(
            task_id=task.task_id,
            model=model,
            completion=completion,
            code=codes[task.task_id],
            outcome=outcomes[task.task_id] if codes[task.task_id] else Outcome.NO_CODE,
        )
        for task, completion in zip(tasks, completions, strict=True)
    ]


def score(samples: Sequence[EvaluationSample], *, benchmark: str, model: EvaluatedModel) -> BenchmarkScore:
    """pass@1 of greedy completions: the share of tasks that passed, with a 95 % Wilson interval.

    Tasks that our sandbox could not run are excluded from the share and counted.
    """
    outcomes = Counter(sample.outcome for sample in samples)
    excluded = outcomes[Outcome.SANDBOX_UNAVAILABLE]
    return BenchmarkScore(
        benchmark=benchmark,
        model=model,
        pass_at_1=wilson(successes=outcomes[Outcome.PASSED], n=len(samples) - excluded, excluded=excluded),
        outcomes={outcome.value: count for outcome, count in sorted(outcomes.items())},
    )

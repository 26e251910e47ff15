"""Stage 4: execute the candidates' code. ``python -m services.sandbox.stage FOLDER``"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from privcode.code_blocks import CodeBlock, first_code_block
from privcode.errors import SandboxUnavailable
from privcode.results import Candidate, ExecutedCandidate, Outcome
from privcode.sandbox import Execution, ExecutionResult, RunnerClient
from privcode.specs import ExecutionLimits
from privcode.stage_io import Stage, run_child

_BATCH: Final = 64


def execute(stage: Stage) -> None:
    """Run the first code block of each candidate; writes ``executed``, in the order of ``candidates``.

    Raises :class:`SandboxUnavailable` if the runner can't be reached or can't execute a candidate: that says nothing
    about the candidate, so the stage fails and no outcome is written.
    """
    candidates = stage.read_models("candidates", Candidate)
    blocks = {candidate.id: first_code_block(candidate.completion) for candidate in candidates}
    executions = [
        Execution(id=name, language=block.language, code=block.code)
        for name, block in blocks.items()
        if block is not None
    ]
    done = len(candidates) - len(executions)
    stage.progress(done, len(candidates))
    results: dict[str, ExecutionResult] = {}
    runner = RunnerClient(Path(stage.environment.sandbox_socket))
    for result in _run(executions, runner=runner, limits=stage.spec.execute):
        results[result.id] = result
        stage.progress(done + len(results), len(candidates))

    executed = [
        _executed(candidate, block=blocks[candidate.id], result=results.get(candidate.id)) for candidate in candidates
    ]
    stage.write_rows("executed", executed)
    counts = Counter(candidate.outcome for candidate in executed)
    stage.metric("candidates", len(executed))
    for outcome in Outcome:
        if outcome is not Outcome.SANDBOX_UNAVAILABLE:
            stage.metric(outcome.value, counts[outcome])


def _run(
    executions: Sequence[Execution], *, runner: RunnerClient, limits: ExecutionLimits
) -> Iterator[ExecutionResult]:
    for start in range(0, len(executions), _BATCH):
        for result in runner.run(executions[start : start + _BATCH], limits=limits):
            if result.outcome is Outcome.SANDBOX_UNAVAILABLE:
                raise SandboxUnavailable("the sandbox could not execute a candidate; the runner's log tells why")
            yield result


def _executed(candidate: Candidate, *, block: CodeBlock | None, result: ExecutionResult | None) -> ExecutedCandidate:
    return ExecutedCandidate(
        id=candidate.id,
        problem=candidate.problem,
        language=block.language if block else "",
        code=block.code if block else "",
        **({"outcome": Outcome.NO_CODE} if result is None else result.model_dump(exclude={"id"})),
    )


if __name__ == "__main__":
    run_child({"execute": execute})

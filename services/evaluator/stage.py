"""Child process of the evaluator's stages: ``python -m services.evaluator.stage FOLDER``.

Only the stages that ask a model import torch, which takes seconds; the report does not wait for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from lm.generator import SamplingParams
from privcode.canaries import audit_prompts, make_canaries
from privcode.results import (
    CanaryAudit,
    Candidate,
    Evaluation,
    ExecutedCandidate,
    PrivacyReceipt,
    ScoredCandidate,
    SyntheticPair,
)
from privcode.sandbox import RunnerClient
from privcode.stage_io import Stage, run_child
from services.evaluator.core.audit import Source, canary_audit, no_audit
from services.evaluator.core.evaluation import EvaluatedModel, EvaluationSample, score, verify
from services.evaluator.core.history import History
from services.evaluator.core.humaneval import read_tasks
from services.evaluator.core.render import render_html
from services.evaluator.core.report import build_report

Row = TypeVar("Row", bound=BaseModel)


def evaluate(stage: Stage) -> None:
    """Greedy pass@1 of the base and of the tuned premium model, asked with the same prompts."""
    from services.evaluator.generation import base_model, complete, complete_prompts

    spec = stage.spec
    tasks = read_tasks(limit=spec.evaluate.limit)
    runner = RunnerClient(Path(stage.environment.sandbox_socket))
    base = base_model(stage)
    prompts = complete_prompts([task.problem for task in tasks], model=base, stage=stage)
    params = SamplingParams(max_new_tokens=spec.evaluate.max_new_tokens)

    models: dict[EvaluatedModel, str] = {"base": base, "tuned": str(stage.input("premium_model"))}
    samples: list[EvaluationSample] = []
    scores = []
    for turn, (model, path) in enumerate(models.items()):
        completions = complete(path, prompts, params=params, stage=stage, turn=turn, turns=len(models))
        verified = verify(
            tasks,
            [texts[0] for texts in completions],
            model=model,
            execute=lambda programs: runner.run(programs, limits=spec.execute),
        )
        scores.append(score(verified, benchmark="humaneval", model=model))
        samples += verified
    stage.write_model("evaluation", Evaluation(scores=scores))
    stage.write_rows("evaluation_samples", samples)
    stage.metric("tasks", len(tasks))
    for result in scores:
        stage.metric(f"pass_at_1_{result.model}", result.pass_at_1.value)
        stage.metric(f"excluded_{result.model}", result.pass_at_1.excluded)


def audit(stage: Stage) -> None:
    """Look for the planted canaries in what the job's models answer and in its synthetic data."""
    spec = stage.spec.audit
    if spec.canary_rate == 0:
        result = no_audit()
    else:
        from services.evaluator.generation import complete, complete_prompts

        problems = audit_prompts(spec.prompts, spec.seed)
        params = SamplingParams(
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            n=spec.samples_per_prompt,
            seed=spec.seed,
        )
        said: dict[Source, list[str]] = {}
        kinds: dict[Source, str] = {"junior": "junior_model", "premium": "premium_model"}
        models = {source: str(stage.input(kind)) for source, kind in kinds.items() if stage.has_input(kind)}
        for turn, (source, path) in enumerate(models.items()):
            prompts = complete_prompts(problems, model=path, stage=stage)
            completions = complete(path, prompts, params=params, stage=stage, turn=turn, turns=len(models))
            said[source] = [text for texts in completions for text in texts]
        if stage.has_input("synthetic"):
            rows = stage.read_models("synthetic", SyntheticPair)
            said["synthetic"] = [f"{row.problem}\n{row.solution}" for row in rows]
        result = canary_audit(
            make_canaries(spec.seed),
            said,
            canary_rate=spec.canary_rate,
            prompts=spec.prompts,
            samples_per_prompt=spec.samples_per_prompt,
        )
    stage.write_model("canary_audit", result)
    stage.metric("canaries", result.leakage.n)
    stage.metric("canaries_leaked", result.leakage.successes)


def report(stage: Stage) -> None:
    """Everything above in one document, as JSON and as a self-contained page."""

    def rows(kind: str, model: type[Row]) -> list[Row] | None:
        return stage.read_models(kind, model) if stage.has_input(kind) else None

    receipt = stage.read_model("privacy_receipt", PrivacyReceipt) if stage.has_input("privacy_receipt") else None
    result = build_report(
        spec=stage.spec,
        label=stage.definition.result_label({kind: given.label for kind, given in stage.task.inputs.items()}),
        history=History.model_validate(stage.task.history),
        receipt=receipt,
        candidates=rows("candidates", Candidate),
        executed=rows("executed", ExecutedCandidate),
        scored=rows("scored", ScoredCandidate),
        synthetic=rows("synthetic", SyntheticPair),
        evaluation=stage.read_model("evaluation", Evaluation),
        audit=stage.read_model("canary_audit", CanaryAudit),
    )
    stage.write_model("report_json", result)
    (stage.output("report_html") / "report_html.html").write_text(render_html(result), encoding="utf-8")
    stage.metric("warnings", len(result.warnings))


if __name__ == "__main__":
    run_child({"evaluate": evaluate, "audit": audit, "report": report})

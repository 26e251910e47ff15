"""The evaluator's stages over the contract of ``privcode.stage_io``, with the tiny model and the real sandbox."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from finished_job import Finished
from pydantic import BaseModel

from privcode.canaries import CanaryKind, make_canaries
from privcode.presets import resolve
from privcode.results import CanaryAudit, Evaluation
from privcode.specs import JobSpec
from privcode.stage_io import Stage
from services.evaluator.core.evaluation import EvaluationSample
from services.evaluator.core.report import Report
from services.evaluator.stage import audit, evaluate
from tests.recipes import request_of
from tests.stages import progress


def _spec(finished: Finished, **parts: dict[str, Any]) -> JobSpec:
    spec: JobSpec = finished.inputs["spec"]
    data = spec.model_dump(mode="json")
    for part, values in parts.items():
        data[part] |= values
    return JobSpec.model_validate_json(json.dumps(data))


def _folder(
    tmp_path: Path, name: str, *, finished: Finished, spec: JobSpec, inputs: Mapping[str, Path], models_dir: Path,
    socket: Path,
) -> Path:  # fmt: skip
    folder = tmp_path / "stage"
    folder.mkdir()
    task = {
        "job_id": "job_1",
        "stage": name,
        "attempt": 1,
        "spec": spec.model_dump(mode="json"),
        "plan": finished.inputs["receipt"].plan.model_dump(mode="json"),
        "inputs": {kind: {"path": str(path), "label": "dp"} for kind, path in inputs.items()},
        "keep_dir": str(tmp_path / "keep"),
        "environment": {"models_dir": str(models_dir), "sandbox_socket": str(socket), "threads": 1},
        "history": finished.inputs["history"].model_dump(mode="json"),
    }
    (folder / "stage.json").write_text(json.dumps(task))
    return folder


def _artifact(tmp_path: Path, kind: str, content: BaseModel | Sequence[BaseModel]) -> Path:
    folder = tmp_path / kind
    folder.mkdir()
    if isinstance(content, BaseModel):
        (folder / f"{kind}.json").write_text(content.model_dump_json())
    else:
        (folder / f"{kind}.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in content))
    return folder


def test_report_as_a_child_process(tmp_path: Path, finished: Finished) -> None:
    kinds = {
        "privacy_receipt": "receipt", "candidates": "candidates", "executed": "executed", "scored": "scored",
        "evaluation": "evaluation", "canary_audit": "audit",
    }  # fmt: skip
    inputs = {kind: _artifact(tmp_path, kind, finished.inputs[name]) for kind, name in kinds.items()}
    folder = _folder(
        tmp_path, "report", finished=finished, spec=finished.inputs["spec"], inputs=inputs, models_dir=tmp_path,
        socket=tmp_path / "none",
    )  # fmt: skip
    child = subprocess.run([sys.executable, "-m", "services.evaluator.stage", str(folder)], check=False)
    assert child.returncode == 0
    written = folder / "outputs" / "report_json" / "report_json.json"
    assert Report.model_validate_json(written.read_bytes()) == finished.report()
    assert "3.1415" in (folder / "outputs" / "report_html" / "report_html.html").read_text()
    assert json.loads((folder / "result.json").read_bytes()) == {"metrics": {"warnings": 4}}


def test_evaluate(tmp_path: Path, finished: Finished, tiny_llama: Path, runner_socket: Path) -> None:
    spec = _spec(
        finished, boost={"model": f"local/{tiny_llama.name}"}, evaluate={"limit": 3, "max_new_tokens": 48}
    )  # fmt: skip
    stage = Stage(
        _folder(
            tmp_path, "evaluate", finished=finished, spec=spec, inputs={"premium_model": tiny_llama},
            models_dir=tiny_llama.parent, socket=runner_socket,
        )
    )  # fmt: skip
    evaluate(stage)
    result = Evaluation.model_validate_json((stage.output("evaluation") / "evaluation.json").read_bytes())
    assert [(score.model, score.pass_at_1.n, score.pass_at_1.successes) for score in result.scores] == [
        ("base", 3, 0),
        ("tuned", 3, 0),
    ]
    rows = (stage.output("evaluation_samples") / "evaluation_samples.jsonl").read_text().splitlines()
    samples = [EvaluationSample.model_validate_json(row) for row in rows]
    assert [(sample.model, sample.task_id) for sample in samples] == [
        (model, f"HumanEval/{number}") for model in ("base", "tuned") for number in range(3)
    ]
    # The same model was asked with the same prompts.
    assert [sample.completion for sample in samples[:3]] == [sample.completion for sample in samples[3:]]


class _Row(BaseModel):
    problem: str
    solution: str
    lang: str = "python"


@pytest.mark.parametrize("rate", [0, 2])
def test_audit(rate: int, tmp_path: Path, finished: Finished, tiny_llama: Path) -> None:
    password = next(canary for canary in make_canaries(5) if canary.kind is CanaryKind.PASSWORD)
    synthetic = _artifact(tmp_path, "synthetic", [_Row(problem="p", solution=password.solution)])
    spec = _spec(
        finished, audit={"canary_rate": rate, "seed": 5, "prompts": 6, "samples_per_prompt": 2, "max_new_tokens": 8}
    )  # fmt: skip
    stage = Stage(
        _folder(
            tmp_path, "audit", finished=finished, spec=spec, models_dir=tmp_path, socket=tmp_path / "none",
            inputs={"junior_model": tiny_llama, "premium_model": tiny_llama, "synthetic": synthetic},
        )
    )  # fmt: skip
    audit(stage)
    text = (stage.output("canary_audit") / "canary_audit.json").read_text()
    result = CanaryAudit.model_validate_json(text)
    found = {finding.kind: list(finding.leaked_by) for finding in result.findings if finding.leaked_by}
    if rate == 0:
        assert (result.injected, result.leakage.n) == (False, 0)
    else:
        assert found == {"password": ["synthetic"]}
        assert (result.leakage.successes, result.leakage.n, result.prompts) == (1, 5, 6)
    assert password.value not in text


def test_audit_of_a_recipe_without_a_junior(
    tmp_path: Path, finished: Finished, tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = resolve(
        request_of("dpft", audit={"canary_rate": 1, "prompts": 3, "samples_per_prompt": 1, "max_new_tokens": 4})
    )
    stage = Stage(
        _folder(
            tmp_path, "audit", finished=finished, spec=spec, models_dir=tmp_path, socket=tmp_path / "none",
            inputs={"premium_model": tiny_llama},
        )
    )  # fmt: skip
    audit(stage)
    result = CanaryAudit.model_validate_json((stage.output("canary_audit") / "canary_audit.json").read_bytes())
    assert (result.injected, result.prompts, len(result.findings)) == (True, 3, 5)
    assert progress(capfd.readouterr().out)[-1] == (3, 3), "one model"

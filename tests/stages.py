"""A stage's folder as the worker makes it, for tests that run a stage without the service."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from privcode.presets import resolve
from privcode.recipes import Label
from privcode.results import PrivacyPlan
from privcode.stage_io import Stage, StageEnvironment, StageInput, StageTask

PLAN = PrivacyPlan(
    target_epsilon=4.0,
    target_delta=1e-5,
    records=100,
    expected_batch=16,
    sample_rate=0.16,
    steps=4,
    noise_multiplier=1.0,
    max_grad_norm=1.0,
    clipping="flat",
    unit="record",
    units=100,
    max_records_per_unit=1,
)


def stage_folder(
    folder: Path,
    *,
    stage: str,
    spec: Mapping[str, Any],
    inputs: Mapping[str, Path | Sequence[BaseModel | Mapping[str, Any]]],
    models_dir: Path,
) -> Stage:
    """``spec`` overrides the preset ``demo``; an input is a folder, or rows that are written as its JSONL file."""
    folder.mkdir(parents=True)
    paths = {}
    for kind, content in inputs.items():
        if isinstance(content, Path):
            paths[kind] = content
            continue
        paths[kind] = folder / "inputs" / kind
        paths[kind].mkdir(parents=True)
        rows = [row.model_dump(mode="json") if isinstance(row, BaseModel) else row for row in content]
        (paths[kind] / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = StageTask(
        job_id="job_test",
        stage=stage,
        attempt=1,
        spec=resolve({"preset": "demo", "dataset": "ds_a", "prompts": "ds_b", **spec}),
        plan=PLAN,
        inputs={kind: StageInput(path=str(path), label=Label.DP) for kind, path in paths.items()},
        keep_dir=str(folder / "keep"),
        environment=StageEnvironment(models_dir=str(models_dir), sandbox_socket="/nonexistent", threads=1),
        history={},
    )
    (folder / "stage.json").write_text(task.model_dump_json(), encoding="utf-8")
    return Stage(folder)


def output_rows(stage: Stage, kind: str) -> list[dict[str, Any]]:
    lines = (stage.folder / "outputs" / kind / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def metrics(stage: Stage) -> dict[str, Any]:
    stage.finish()
    found: dict[str, Any] = json.loads((stage.folder / "result.json").read_text(encoding="utf-8"))["metrics"]
    return found


def progress(captured: str) -> list[tuple[int, int]]:
    """(done, total) of each progress line in a stage's standard output."""
    lines = [json.loads(line)["progress"] for line in captured.splitlines()]
    return [(line["done"], line["total"]) for line in lines]

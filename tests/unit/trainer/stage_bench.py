"""Stages of one job on disk, with a tiny model, as the worker makes them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tiny_lora import ROWS

from privcode.accounting import make_plan
from privcode.canaries import planted_count
from privcode.presets import resolve
from privcode.recipes import Label
from privcode.results import PrivacyPlan, PrivacyReceipt
from privcode.specs import JobSpec, PrivacySpec
from privcode.stage_io import Stage, StageEnvironment, StageInput, StageTask
from services.trainer.stage import run_sanitize

LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
MARKER = "zanzibar_marker"
PRIVATE = [{**row, "problem": f"{MARKER} {row['problem']}"} for row in ROWS]


def spec_with(**over: Any) -> JobSpec:
    request: dict[str, Any] = {
        "preset": "demo", "dataset": "d", "prompts": "p",
        "privacy": {"target_epsilon": 3.1415, "expected_batch": 4, "steps": 3, "data_seed": 11},
        "sanitize": {"model": "local/tiny", "lora": LORA, "seq_length": 160, "learning_rate": 1e-2},
        "boost": {"model": "local/tiny", "lora": LORA, "learning_rate": 1e-2, "steps": 9, "batch": 4, "seq_length": 99},
        "audit": {"canary_rate": 1},
    }  # fmt: skip
    return resolve({**request, **over})


@cache
def plan_of(privacy: PrivacySpec, records: int) -> PrivacyPlan:
    return make_plan(privacy, records=records)


class Bench:
    """Makes stages of one job on disk."""

    def __init__(self, root: Path, models_dir: Path) -> None:
        self.root = root
        self.models_dir = models_dir

    def rows(self, kind: str, rows: list[dict[str, str]]) -> Path:
        folder = self.root / "artifacts" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def stage(
        self,
        name: str,
        *,
        inputs: dict[str, Path],
        spec: JobSpec | None = None,
        plan: PrivacyPlan | None = None,
        run: str = "1",
        records: int = len(PRIVATE),
        reserved_steps: int | None = None,
    ) -> Stage:
        spec = spec or spec_with()
        folder, keep = self.root / run / name, self.root / run / "keep"
        folder.mkdir(parents=True)
        keep.mkdir(exist_ok=True, parents=True)
        task = StageTask(
            job_id="j", stage=name, attempt=1, spec=spec,
            plan=plan
            or (spec.privacy and plan_of(spec.privacy, records + planted_count(spec.audit.canary_rate))),
            inputs={kind: StageInput(path=str(path), label=Label.PRIVATE) for kind, path in inputs.items()},
            keep_dir=str(keep), reserved_steps=reserved_steps,
            environment=StageEnvironment(models_dir=str(self.models_dir), sandbox_socket="unused", threads=1),
            history={},
        )  # fmt: skip
        (folder / "stage.json").write_text(task.model_dump_json())
        return Stage(folder)

    def sanitize(self, *, spec: JobSpec | None = None, run: str = "1") -> Stage:
        stage = self.stage("sanitize", inputs={"dataset": self.rows("dataset", PRIVATE)}, spec=spec, run=run)
        run_sanitize(stage)
        stage.finish()
        return stage


def receipt_of(stage: Stage) -> PrivacyReceipt:
    path = stage.folder / "outputs" / "privacy_receipt" / "privacy_receipt.json"
    return PrivacyReceipt.model_validate_json(path.read_bytes())

"""The four stages as the worker runs them, on a tiny model in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROWS
from peft import PeftModel

from lm.models import load_model, load_tokenizer
from privcode import stage_io
from privcode.accounting import epsilon_pld, make_plan
from privcode.canaries import planted_count
from privcode.errors import StageFailed
from privcode.presets import resolve
from privcode.recipes import Label
from privcode.results import PrivacyPlan, PrivacyReceipt
from privcode.specs import JobSpec, PrivacySpec
from privcode.stage_io import Stage, StageEnvironment, StageInput, StageTask
from services.trainer.core.sequences import make_sequence
from services.trainer.stage import run_boost, run_merge, run_sanitize

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

    def stage(self, name: str, *, inputs: dict[str, Path], spec: JobSpec | None = None, run: str = "1") -> Stage:
        spec = spec or spec_with()
        folder, keep = self.root / run / name, self.root / run / "keep"
        folder.mkdir(parents=True)
        keep.mkdir(exist_ok=True)
        task = StageTask(
            job_id="j", stage=name, attempt=1, spec=spec,
            plan=plan_of(spec.section(PrivacySpec), len(PRIVATE) + planted_count(spec.audit.canary_rate)),
            inputs={kind: StageInput(path=str(path), label=Label.PRIVATE) for kind, path in inputs.items()},
            keep_dir=str(keep),
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


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(stage_io, "_emit", messages.append)
    return messages


@pytest.fixture
def bench(tmp_path: Path, model_folder: Callable[[str], Path], progress: list[dict[str, Any]]) -> Bench:  # noqa: ARG001
    return Bench(tmp_path, model_folder("tiny").parent)


def receipt_of(stage: Stage) -> PrivacyReceipt:
    path = stage.folder / "outputs" / "privacy_receipt" / "privacy_receipt.json"
    return PrivacyReceipt.model_validate_json(path.read_bytes())


def test_sanitize_and_merge(bench: Bench, progress: list[dict[str, Any]]) -> None:
    stage = bench.sanitize()
    outputs = stage.folder / "outputs"
    plan = stage.plan
    receipt = receipt_of(stage)
    assert receipt.plan == plan
    assert receipt.plan.target_epsilon == 3.1415
    assert (receipt.steps_taken, receipt.canaries, receipt.sampling_seed) == (3, 5, "given")
    assert receipt.epsilon_spent == epsilon_pld([plan.mechanism], target_delta=plan.target_delta) <= 3.1415
    assert receipt.epsilon_rdp > receipt.epsilon_spent
    assert receipt.trainable_parameters == 2 * 2 * ((32 + 32) + (32 + 16))
    assert (stage.keep_dir / "steps_taken").read_text() == "3"
    assert [message["progress"]["done"] for message in progress] == [0, 1, 2, 3]

    # What members see has nothing that was computed from the records.
    shown = json.loads((stage.folder / "result.json").read_text())["metrics"]
    assert set(shown) == {"steps_taken", "trainable_parameters", "epsilon_spent", "noise_multiplier"}
    adapter = outputs / "junior_adapter"
    assert {path.name for path in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "local/tiny"
    log = [json.loads(line) for line in (outputs / "training_metrics" / "training_metrics.jsonl").open()]
    assert [row["step"] for row in log] == [1, 2, 3]
    for path in [*stage.folder.rglob("*"), *stage.keep_dir.rglob("*")]:
        if path.is_file():
            assert MARKER.encode() not in path.read_bytes(), path

    merging = bench.stage("merge_junior", inputs={"junior_adapter": adapter}, run="2")
    run_merge(merging)
    folder = merging.folder / "outputs" / "junior_model"
    merged, tokenizer = load_model(folder), load_tokenizer(folder)
    base = load_model(bench.models_dir / "tiny")
    ids = tokenizer("def f(x):\n    return x", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        untrained = base(ids).logits
        trained = PeftModel.from_pretrained(base, str(adapter))(ids).logits
        found = merged(ids).logits
    assert not torch.allclose(trained, untrained, atol=1e-3)
    torch.testing.assert_close(found, trained, atol=1e-4, rtol=1e-4)
    assert tokenizer.chat_template == load_tokenizer(bench.models_dir / "tiny").chat_template
    for path in [*adapter.iterdir(), *folder.iterdir()]:
        assert str(bench.root).encode() not in path.read_bytes(), path


def test_the_receipt_is_the_same_whatever_the_runtime(bench: Bench) -> None:
    runtimes: list[dict[str, Any]] = [
        {"micro_batch": 1, "checkpoint_every": 1},
        {"micro_batch": 16, "checkpoint_every": 100, "generate_batch": 1, "engine": "transformers"},
    ]
    receipts = [
        receipt_of(bench.sanitize(spec=spec_with(runtime=runtime), run=str(number)))
        for number, runtime in enumerate(runtimes)
    ]
    assert receipts[0] == receipts[1]


def test_a_retry_is_charged_for_the_lost_steps(bench: Bench) -> None:
    stage = bench.stage("sanitize", inputs={"dataset": bench.rows("dataset", PRIVATE)})
    (stage.keep_dir / "steps_taken").write_text("2")  # a lost attempt without a checkpoint
    run_sanitize(stage)
    receipt = receipt_of(stage)
    assert receipt.steps_taken == 5
    assert receipt.epsilon_spent > epsilon_pld([receipt.plan.mechanism], target_delta=receipt.plan.target_delta)


def test_changed_records_are_refused(bench: Bench) -> None:
    stage = bench.stage("sanitize", inputs={"dataset": bench.rows("dataset", PRIVATE[:-1])})
    with pytest.raises(StageFailed) as refused:
        run_sanitize(stage)
    assert refused.value.code == "records_changed"
    assert not list(stage.keep_dir.iterdir())


def test_boost_and_merge(bench: Bench) -> None:
    stage = bench.stage("boost", inputs={"synthetic": bench.rows("synthetic", ROWS)})
    run_boost(stage)
    adapter = stage.folder / "outputs" / "premium_adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "local/tiny"
    merging = bench.stage("merge_premium", inputs={"premium_adapter": adapter}, run="2")
    run_merge(merging)
    folder = merging.folder / "outputs" / "premium_model"
    sequences = [make_sequence(row, template="chat", tokenizer=load_tokenizer(folder), seq_length=99) for row in ROWS]
    losses = []
    for path in (bench.models_dir / "tiny", folder):
        model = load_model(path)
        with torch.no_grad():
            each = [model(s.token_ids[None], labels=s.token_ids.where(s.answer, -100)[None]).loss for s in sequences]
        losses.append(sum(map(float, each)))
    assert losses[1] < 0.99 * losses[0]


def test_boost_without_synthetic_data_fails(bench: Bench) -> None:
    stage = bench.stage("boost", inputs={"synthetic": bench.rows("synthetic", [])})
    with pytest.raises(StageFailed) as refused:
        run_boost(stage)
    assert refused.value.code == "no_synthetic_data"


def test_merging_keeps_the_stored_dtype(bench: Bench) -> None:
    base = bench.models_dir / "tiny"
    load_model(base).bfloat16().save_pretrained(base)
    stage = bench.stage("boost", inputs={"synthetic": bench.rows("synthetic", ROWS)})
    run_boost(stage)
    adapter = stage.folder / "outputs" / "premium_adapter"
    merging = bench.stage("merge_premium", inputs={"premium_adapter": adapter}, run="2")
    run_merge(merging)
    config = json.loads((merging.folder / "outputs" / "premium_model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"

"""The stages as the worker runs them, on a tiny model in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from stage_bench import MARKER, PRIVATE, Bench, receipt_of, spec_with
from tiny_lora import ROWS

from lm.models import load_model, load_tokenizer
from privcode.accounting import epsilon_pld, make_plan
from privcode.errors import StageFailed
from services.trainer import stage as trainer_stage
from services.trainer.core.checkpoint import TrainingLog
from services.trainer.core.dp_sgd import train
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.sequences import make_sequence
from services.trainer.stage import (
    run_boost,
    run_merge,
    run_sanitize,
)


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


@pytest.mark.parametrize(
    "runtime",
    [
        {"micro_batch": 16, "checkpoint_every": 100, "generate_batch": 1, "engine": "transformers"},
        {"base_dtype": "bfloat16"},
        {"processes": 2},
        {"gradient_checkpointing": True},
        {"teacher": "cached"},
    ],
    ids=lambda runtime: next(iter(runtime)),
)
def test_the_receipt_is_the_same_whatever_the_runtime(bench: Bench, runtime: dict[str, Any]) -> None:
    runtimes = [{"micro_batch": 1, "checkpoint_every": 1}, runtime]
    receipts = [
        receipt_of(bench.sanitize(spec=spec_with(runtime=runtime), run=str(number)))
        for number, runtime in enumerate(runtimes)
    ]
    assert receipts[0] == receipts[1]


def test_a_cached_teacher_is_kept_in_the_attempts_own_folder(bench: Bench) -> None:
    stages = [
        bench.sanitize(spec=spec_with(runtime={"teacher": teacher}), run=teacher) for teacher in ("inline", "cached")
    ]
    kept = [list(stage.folder.glob("teacher*")) for stage in stages]
    assert kept[0] == []
    (file,) = kept[1]
    assert any(file.read_bytes())
    for stage in stages:
        assert not list((stage.folder / "outputs").rglob("teacher*"))


def test_the_receipt_says_what_the_sampler_did(bench: Bench) -> None:
    privacy = {"target_epsilon": 3.1415, "expected_batch": 4, "steps": 3}
    receipts = [receipt_of(bench.sanitize(spec=spec_with(privacy=privacy), run=run)) for run in "12"]
    for receipt in receipts:
        assert receipt.sampling_seed == "secret"
        assert (receipt.unit, receipt.sampler.units, receipt.sampler.sample_rate) == ("one record", 10, 0.4)
        assert receipt.sampler.test_lots == 1000
        assert receipt.sampler.mean_lot == pytest.approx(4, abs=0.3)
    # Fresh test lots each time, and all else is the same.
    one, other = (receipt.model_dump() for receipt in receipts)
    assert one.pop("sampler") != other.pop("sampler")
    assert one == other


def test_no_test_lot_is_trained_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    draw = PoissonSampler.draw

    def noted(self: PoissonSampler, step: int) -> NDArray[np.int64]:
        steps.append(step)
        return draw(self, step)

    monkeypatch.setattr(PoissonSampler, "draw", noted)
    bench.sanitize()
    assert steps[-3:] == [0, 1, 2]
    assert len(steps) == len(set(steps)) == 1003


def fixed_size(self: PoissonSampler, step: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(step).choice(self._units, 4, replace=False))


def shuffled_epochs(self: PoissonSampler, step: int) -> NDArray[np.int64]:
    order = np.random.default_rng(step // 2).permutation(self._units)
    return np.sort(order[step % 2 * 5 :][:5])


def with_replacement(self: PoissonSampler, step: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(step).integers(self._units, size=4))


def at_twice_the_rate(self: PoissonSampler, step: int) -> NDArray[np.int64]:
    return np.flatnonzero(np.random.default_rng(step).random(self._units) < 0.8)


@pytest.mark.parametrize("draw", [fixed_size, shuffled_epochs, with_replacement, at_twice_the_rate])
def test_another_sampler_is_refused_before_anything_is_spent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, draw: Any
) -> None:
    monkeypatch.setattr(PoissonSampler, "draw", draw)
    stage = bench.stage("sanitize", inputs={"dataset": bench.rows("dataset", PRIVATE)})
    with pytest.raises(StageFailed) as refused:
        run_sanitize(stage)
    assert refused.value.code == "sampler_not_poisson"
    assert not list(stage.keep_dir.iterdir())
    assert not list((stage.folder / "outputs").glob("*"))


def test_records_of_one_unit_are_trained_on_as_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[int]] = []

    def noted(model: PeftModel, units: Any, **options: Any) -> None:
        given.append([len(unit) for unit in units])
        train(model, units, **options)

    monkeypatch.setattr(trainer_stage, "train", noted)
    rows = [{**row, "unit_id": unit_id} for row, unit_id in zip(PRIVATE, ["a", "b", "a", "a", "c"], strict=True)]
    privacy = {"target_epsilon": 3.1415, "expected_batch": 4, "steps": 3, "max_records_per_unit": 2}
    spec = spec_with(privacy=privacy)
    plan = make_plan(spec.privacy, records=5 + 5, units=3 + 5)
    stage = bench.stage("sanitize", inputs={"dataset": bench.rows("dataset", rows)}, spec=spec, plan=plan)
    run_sanitize(stage)
    # Each planted canary is a unit of its own.
    assert given == [[2, 1, 1, 1, 1, 1, 1, 1]]
    receipt = receipt_of(stage)
    assert (receipt.plan.unit, receipt.plan.units, receipt.sampler.units) == ("unit_id", 8, 8)
    assert receipt.plan.sample_rate == 4 / 8
    assert receipt.unit == "all records with one unit_id, of which at most 2 are used"


def test_other_units_than_the_plans_are_refused(bench: Bench) -> None:
    rows = [{**row, "unit_id": "a"} for row in PRIVATE]
    stage = bench.stage("sanitize", inputs={"dataset": bench.rows("dataset", rows)})
    with pytest.raises(StageFailed) as refused:
        run_sanitize(stage)
    assert (refused.value.code, refused.value.message) == (
        "records_changed", "10 records in 6 units, the plan has 10 in 10",
    )  # fmt: skip


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


def test_what_can_not_fit_is_refused_before_anything_is_read(bench: Bench) -> None:
    stage = bench.stage("sanitize", inputs={}, spec=spec_with(runtime={"micro_batch": 10**7}))
    with pytest.raises(
        StageFailed, match=r"about \d+ MiB are needed and \d+ MiB are there; runtime\.micro_batch"
    ) as no:
        run_sanitize(stage)
    assert no.value.code == "not_enough_memory"
    assert not list(stage.keep_dir.iterdir())


def test_no_step_beyond_what_is_reserved(bench: Bench) -> None:
    stage = bench.stage("sanitize", inputs={"dataset": bench.rows("dataset", PRIVATE)}, reserved_steps=2)
    with pytest.raises(StageFailed) as refused:
        run_sanitize(stage)
    assert refused.value.code == "reservation_exhausted"
    assert (stage.keep_dir / "steps_taken").read_text() == "2"


def test_a_row_of_the_log_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    TrainingLog(path).append({"step": 1})
    TrainingLog(path).append({"step": 2})
    path.write_text(path.read_text()[:-3])
    TrainingLog(path).append({"step": 2})
    assert list(TrainingLog(path).rows()) == [{"step": 1}, {"step": 2}]

"""The stages as the worker runs them, on a tiny model in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROWS
from numpy.typing import NDArray
from peft import PeftModel

from lm.models import load_model, load_tokenizer
from privcode import stage_io
from privcode.accounting import epsilon_pld, make_plan
from privcode.canaries import CanaryKind, found_in, make_canaries, planted_count
from privcode.errors import StageFailed
from privcode.presets import resolve
from privcode.recipes import RECIPES, Label
from privcode.results import PrivacyPlan, PrivacyReceipt
from privcode.specs import JobSpec, PrivacySpec
from privcode.stage_io import Stage, StageEnvironment, StageInput, StageTask
from services.trainer import stage as trainer_stage
from services.trainer.core.checkpoint import TrainingLog
from services.trainer.core.dp_sgd import train
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.sequences import make_sequence
from services.trainer.stage import (
    run_boost,
    run_finetune,
    run_mask,
    run_merge,
    run_sanitize,
    run_tune_masked,
    run_warm_up,
)

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


# The native engine finds its parameters by what backward unpacks, which checkpointing replaces by copies.
@pytest.mark.parametrize(
    "runtime",
    [
        {"micro_batch": 16, "checkpoint_every": 100, "generate_batch": 1, "engine": "transformers"},
        {"base_dtype": "bfloat16"},
        {"processes": 2},
        {"gradient_checkpointing": True},
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


def recipe_spec(recipe: str, **over: Any) -> JobSpec:
    """``spec_with`` for a recipe that has no use for all of it."""
    request: dict[str, Any] = {
        "preset": "demo", "recipe": recipe, "dataset": "d", "audit": {"canary_rate": 1},
        "privacy": {"target_epsilon": 3.1415, "expected_batch": 4, "steps": 2, "data_seed": 11},
        "sanitize": {"model": "local/tiny", "lora": LORA, "seq_length": 160, "learning_rate": 1e-2},
        "boost": {"model": "local/tiny", "lora": LORA, "learning_rate": 1e-2, "steps": 3, "batch": 4, "seq_length": 99},
    }  # fmt: skip
    unused = {"privacy", "sanitize", "boost"} - RECIPES[recipe].needs
    return resolve({name: part for name, part in request.items() if name not in unused} | over)


WARM_UP = {
    "dataset": "w", "lora": LORA, "learning_rate": 1e-2, "steps": 3, "batch": 4, "seq_length": 99,
}  # fmt: skip


def texts_trained_on(stage: Stage, monkeypatch: pytest.MonkeyPatch, run: Callable[[Stage], None]) -> list[str]:
    """The rows' problems that a stage makes sequences of."""
    seen: list[str] = []
    original = trainer_stage.make_sequence

    def spy(row: dict[str, str], **options: Any) -> Any:
        seen.append(row["problem"])
        return original(row, **options)

    monkeypatch.setattr(trainer_stage, "make_sequence", spy)
    run(stage)
    return seen


def base_of(stage: Stage, adapter: str) -> str:
    config = json.loads((stage.folder / "outputs" / adapter / "adapter_config.json").read_text())
    return str(config["base_model_name_or_path"])


def test_finetune_takes_all_private_rows_and_the_canaries(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = bench.stage("finetune", inputs={"dataset": bench.rows("dataset", PRIVATE)}, spec=recipe_spec("nondpft"))
    assert stage.task.plan is None
    problems = texts_trained_on(stage, monkeypatch, run_finetune)
    assert problems[: len(PRIVATE)] == [row["problem"] for row in PRIVATE]
    assert len(problems) == len(PRIVATE) + planted_count(1)
    assert base_of(stage, "premium_adapter") == "local/tiny"
    with pytest.raises(LookupError, match="no privacy plan"):
        _ = stage.plan


@pytest.mark.parametrize("recipe", ["dpft", "nondpft"])
def test_limited_rows_are_those_whose_problems_were_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    kept = [PRIVATE[3], PRIVATE[1] | {"solution": "another"}, ROWS[0]]
    inputs = {"dataset": bench.rows("dataset", PRIVATE), "kept_pairs": bench.rows("kept_pairs", kept)}
    spec = recipe_spec(recipe, rows_of_job="job_1")
    name, run = ("sanitize", run_sanitize) if recipe == "dpft" else ("finetune", run_finetune)
    stage = bench.stage(name, inputs=inputs, spec=spec, records=2)
    problems = texts_trained_on(stage, monkeypatch, run)
    assert problems[:2] == [PRIVATE[1]["problem"], PRIVATE[3]["problem"]]
    assert len(problems) == 2 + planted_count(1)
    if recipe == "dpft":
        assert receipt_of(stage).plan.records == 7
        assert base_of(stage, "premium_adapter") == "local/tiny"


def test_mask_changes_solutions_alone_and_canaries_are_masked_too(bench: Bench) -> None:
    secret = {"problem": f"{MARKER} Mail.", "solution": 'MAIL = "someone.real@corp.org"\n', "lang": "python"}
    rows = [*PRIVATE, secret]
    stage = bench.stage("mask", inputs={"dataset": bench.rows("dataset", rows)}, spec=recipe_spec("jft"))
    run_mask(stage)
    masked = list(map(json.loads, (stage.folder / "outputs" / "masked" / "masked.jsonl").open()))
    assert [row["problem"] for row in masked[: len(rows)]] == [row["problem"] for row in rows]
    assert len(masked) == len(rows) + planted_count(1)
    assert masked[0]["solution"] == PRIVATE[0]["solution"]
    assert masked[len(PRIVATE)]["solution"] == 'MAIL = "<EMAIL>"\n'
    email = next(canary for canary in make_canaries(0) if canary.kind is CanaryKind.EMAIL)
    assert not any(found_in(email, row["solution"]) for row in masked)


def test_the_second_training_goes_on_from_the_first(bench: Bench) -> None:
    spec = recipe_spec("jft")
    first = bench.stage("tune_masked", inputs={"masked": bench.rows("masked", PRIVATE)}, spec=spec)
    run_tune_masked(first)
    assert base_of(first, "masked_adapter") == "local/tiny"
    merging = bench.stage(
        "merge_masked", inputs={"masked_adapter": first.folder / "outputs" / "masked_adapter"}, spec=spec
    )
    run_merge(merging)
    masked = merging.folder / "outputs" / "masked_model"
    second = bench.stage(
        "sanitize", inputs={"dataset": bench.rows("dataset", PRIVATE), "masked_model": masked}, spec=spec
    )
    run_sanitize(second)
    assert base_of(second, "premium_adapter") == "masked_model"
    last = bench.stage(
        "merge_premium", spec=spec,
        inputs={"premium_adapter": second.folder / "outputs" / "premium_adapter", "masked_model": masked},
    )  # fmt: skip
    run_merge(last)
    # What the first training learned is in the result: its base is the masked model and not the public one.
    frozen = "model.layers.0.mlp.up_proj.weight"
    tuned = "model.layers.0.self_attn.q_proj.weight"
    public, between, end = (
        load_model(path).state_dict()
        for path in (bench.models_dir / "tiny", masked, last.folder / "outputs" / "premium_model")
    )
    assert torch.equal(public[frozen], end[frozen])
    assert not torch.equal(public[tuned], between[tuned])
    assert not torch.equal(between[tuned], end[tuned])
    # Two updates of rank 2 have more than rank 2 together.
    assert torch.linalg.matrix_rank(end[tuned] - between[tuned], atol=1e-5) <= 2
    assert torch.linalg.matrix_rank(end[tuned] - public[tuned], atol=1e-5) > 2


def test_a_warm_up_is_the_base_of_the_private_training(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = recipe_spec("dpft", warm_up=WARM_UP)
    warm = bench.stage("warm_up", inputs={"warm_up_pairs": bench.rows("warm_up_pairs", ROWS)}, spec=spec)
    problems = texts_trained_on(warm, monkeypatch, run_warm_up)
    assert problems == [row["problem"] for row in ROWS], "no canary is planted in public data"
    merging = bench.stage("merge_warm_up", inputs={"warm_adapter": warm.folder / "outputs" / "warm_adapter"}, spec=spec)
    run_merge(merging)
    model = merging.folder / "outputs" / "warm_model"
    private = bench.stage(
        "sanitize", inputs={"dataset": bench.rows("dataset", PRIVATE), "warm_model": model}, spec=spec
    )
    loaded: list[str] = []
    original = trainer_stage.load_base

    def spy(path: str, **options: Any) -> Any:
        loaded.append(str(path))
        return original(path, **options)

    monkeypatch.setattr(trainer_stage, "load_base", spy)
    run_sanitize(private)
    assert loaded == [str(model)], "trained model and teacher are one network, the warm one"
    assert base_of(private, "premium_adapter") == "warm_model"


def test_a_checkpoint_of_another_base_is_refused(bench: Bench, tmp_path: Path) -> None:
    spec = recipe_spec("dpft", warm_up=WARM_UP)
    bases = [tmp_path / "artifacts" / name for name in ("aaaa", "bbbb")]
    for base in bases:
        shutil.copytree(bench.models_dir / "tiny", base)
    for run, base in zip(("1", "2"), bases, strict=True):
        inputs = {"dataset": bench.rows("dataset", PRIVATE), "warm_model": base}
        stage = bench.stage("sanitize", inputs=inputs, spec=spec, run=run)
        if run == "1":
            run_sanitize(stage)
            shutil.copytree(stage.keep_dir, tmp_path / "2" / "keep")
            continue
        with pytest.raises(StageFailed) as refused:
            run_sanitize(stage)
        assert refused.value.code == "checkpoint_unusable"


def test_data_without_an_answer_token_is_an_error(bench: Bench) -> None:
    long = [{"problem": "x " * 400, "solution": "y", "lang": "python"}]
    spec = recipe_spec("dpft", warm_up=WARM_UP)
    stage = bench.stage("warm_up", inputs={"warm_up_pairs": bench.rows("warm_up_pairs", long)}, spec=spec)
    with pytest.raises(StageFailed) as refused:
        run_warm_up(stage)
    assert refused.value.code == "no_training_data"

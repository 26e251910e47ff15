"""The stages of the recipes beside ``privcode``, and of a warm-up, on a tiny model in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_bench import LORA, MARKER, PRIVATE, Bench, receipt_of
from tiny_lora import ROWS

from lm.models import load_model
from privcode.canaries import CanaryKind, found_in, make_canaries, planted_count
from privcode.errors import StageFailed
from privcode.presets import resolve
from privcode.recipes import RECIPES
from privcode.specs import JobSpec
from privcode.stage_io import Stage
from services.trainer import stage as trainer_stage
from services.trainer.stage import run_finetune, run_mask, run_merge, run_sanitize, run_tune_masked, run_warm_up


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

"""Presets are complete, keep the paper's values, and give way to what a request says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from privcode.errors import InvalidInput
from privcode.models import model_info
from privcode.presets import PRESETS, resolve

DATA = {"dataset": "ds_1", "prompts": "ds_2"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_leaves_open_the_data_alone_and_knows_its_models(preset: str, tmp_path: Path) -> None:
    spec = resolve({"preset": preset, **DATA})
    with pytest.raises(ValidationError) as caught:
        resolve({"preset": preset})
    assert {error["loc"] for error in caught.value.errors()} == {("dataset",), ("prompts",)}
    kinds = {field: model_info(name, models_dir=tmp_path).kind for field, name in spec.models.items()}
    assert kinds.pop("round_trip.scorer") == "encoder"
    assert set(kinds.values()) == {"causal"}


def test_the_paper_preset_has_the_papers_values() -> None:
    spec = resolve({"preset": "paper", **DATA})
    assert (spec.privacy.target_epsilon, spec.privacy.target_delta, spec.privacy.max_grad_norm) == (4.0, 1e-5, 1.0)
    assert spec.privacy.steps == 100
    privsa = spec.sanitize.privsa
    assert (privsa.lambda_max, privsa.lambda_min, privsa.alpha, privsa.nominal_accumulation) == (1000, 0.1, 0.01, 16)
    assert (spec.sanitize.lora.rank, spec.sanitize.lora.alpha, spec.sanitize.lora.dropout) == (16, 32, 0.05)
    assert len(spec.sanitize.lora.target_modules) == 7
    assert (spec.sanitize.learning_rate, spec.sanitize.weight_decay, spec.sanitize.seq_length) == (5e-6, 0.05, 1024)
    assert (spec.round_trip.samples, spec.round_trip.temperature, spec.round_trip.tau) == (20, 0.8, 0.88)
    assert spec.execute.time_limit_s == 5
    assert spec.privacy.data_seed is None


def test_the_demo_preset_runs_on_packages_alone(tmp_path: Path) -> None:
    spec = resolve({"preset": "demo", **DATA})
    assert {model_info(name, models_dir=tmp_path).source for name in spec.models.values()} == {"package"}


def test_a_request_overrides_single_values_and_leaves_the_preset_as_it_is() -> None:
    before = resolve({"preset": "demo", **DATA})
    request: dict[str, Any] = {
        "preset": "demo",
        "privacy": {"target_epsilon": 3.1415},
        "sanitize": {"lora": {"target_modules": ["o_proj"]}},
        **DATA,
    }
    spec = resolve(request)
    assert spec.privacy.target_epsilon == 3.1415
    assert spec.privacy.steps == before.privacy.steps
    assert spec.sanitize.lora.target_modules == ("o_proj",)
    assert spec.sanitize.lora.rank == before.sanitize.lora.rank
    assert request["preset"] == "demo"
    assert resolve({"preset": "demo", **DATA}) == before


@pytest.mark.parametrize("preset", ["", "Demo", "production", 3, ["demo"], {"demo": 1}, False])
def test_an_unknown_preset_is_refused(preset: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve({"preset": preset, **DATA})
    assert (caught.value.code, caught.value.field, caught.value.value) == ("unknown_preset", "preset", preset)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ({"privacy": {"target_epsilon": float("nan")}}, ("privacy", "target_epsilon")),
        ({"privacy": None}, ("privacy",)),
        ({"privacy": 4}, ("privacy",)),
        ({"epsilon": 4}, ("epsilon",)),
        ({"privacy": {"epsilon": 4}}, ("privacy", "epsilon")),
    ],
)
def test_an_override_is_validated_where_it_stands(override: dict[str, Any], field: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        resolve({"preset": "demo", **DATA, **override})
    assert [error["loc"] for error in caught.value.errors()] == [field]


def test_without_a_preset_everything_must_be_said() -> None:
    with pytest.raises(ValidationError) as caught:
        resolve(DATA)
    assert ("privacy",) in {error["loc"] for error in caught.value.errors()}

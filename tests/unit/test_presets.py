"""Presets are complete, keep the paper's values, and give way to what a request says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from privcode.errors import InvalidInput
from privcode.models import model_info
from privcode.presets import PRESETS, resolve
from privcode.recipes import RECIPES
from privcode.specs import SanitizeSpec
from tests.recipes import WARM_UP, request_of

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
        resolve({"recipe": "privcode", **DATA})
    assert ("privacy",) in {error["loc"] for error in caught.value.errors()}


def refused(request: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        resolve(request)
    return [(".".join(map(str, error["loc"])), error["type"]) for error in caught.value.errors()]


SECTIONS: dict[str, Any] = {
    "prompts": "ds_2", "rows_of_job": "job_1", "privacy": {"steps": 3}, "sanitize": {"seq_length": 99},
    "synthesize": {"max_prompts": 3}, "round_trip": {"tau": 0.1}, "boost": {"steps": 3}, "warm_up": WARM_UP,
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_presets_sections_are_there_exactly_if_the_recipe_needs_them(recipe: str, preset: str) -> None:
    spec = resolve(request_of(recipe, preset=preset))
    assert {name for name in SECTIONS if getattr(spec, name) is not None} == RECIPES[recipe].needs
    assert resolve(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_of_the_request_that_the_recipe_does_not_use_is_refused(recipe: str, section: str) -> None:
    asked = request_of(recipe, **{section: SECTIONS[section]})
    if section in RECIPES[recipe].needs | RECIPES[recipe].may_have:
        assert getattr(resolve(asked), section) is not None
    else:
        code = "privacy_without_mechanism" if section == "privacy" else "unused_section"
        assert refused(asked) == [(section, code)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_section_that_is_missing_is_named(recipe: str) -> None:
    complete = resolve(request_of(recipe)).model_dump(mode="json")
    for section in RECIPES[recipe].needs:
        without = {name: value for name, value in complete.items() if name != section}
        assert refused(without) == [(section, "missing")]
        assert refused({**complete, section: None}) == [(section, "missing")]


@pytest.mark.parametrize("recipe", [name for name, recipe in RECIPES.items() if recipe.schedule])
def test_a_recipe_brings_its_schedule_and_lets_no_other_pass(recipe: str) -> None:
    wanted = RECIPES[recipe].schedule
    assert resolve(request_of(recipe)).section(SanitizeSpec).privsa.schedule == wanted
    other = "off" if wanted != "off" else "exponential"
    with pytest.raises(InvalidInput) as caught:
        resolve(request_of(recipe, sanitize={"privsa": {"schedule": other}}))
    assert (caught.value.code, caught.value.field, caught.value.value) == (
        "schedule_of_recipe", "sanitize.privsa.schedule", other,
    )  # fmt: skip


def test_the_schedules_are_those_of_the_ablations() -> None:
    off, constant = ({name for name, recipe in RECIPES.items() if recipe.schedule == of} for of in ("off", "constant"))
    assert (off, constant) == ({"noast", "dpft", "jft"}, {"stable_lambda"})


@pytest.mark.parametrize("recipe", ["dpft", "noevol", "jft"])
def test_what_is_trained_with_privacy_is_the_presets_premium_model(recipe: str) -> None:
    spec = resolve(request_of(recipe, preset="paper"))
    assert spec.section(SanitizeSpec).model == spec.premium_model == "Qwen/Qwen2.5-Coder-7B"
    own = {"sanitize": {"model": "google/codegemma-7b"}}
    if recipe != "jft":
        assert resolve(request_of(recipe, preset="paper", **own)).premium_model == "google/codegemma-7b"
        return
    with pytest.raises(InvalidInput) as caught:
        resolve(request_of(recipe, preset="paper", **own))
    assert (caught.value.code, caught.value.field) == ("models_differ", "boost.model")
    both = resolve(request_of(recipe, preset="paper", boost={"model": "google/codegemma-7b"}))
    assert set(both.models.values()) == {"google/codegemma-7b"}


def test_the_junior_of_a_two_stage_recipe_stays() -> None:
    spec = resolve(request_of("noast", preset="paper"))
    assert (spec.models["sanitize.model"], spec.premium_model) == ("Qwen/Qwen2.5-Coder-1.5B", "Qwen/Qwen2.5-Coder-7B")


def test_a_section_that_a_recipe_lacks_is_a_defect_to_ask_for() -> None:
    with pytest.raises(LookupError, match="nondpft has no SanitizeSpec"):
        resolve(request_of("nondpft")).section(SanitizeSpec)

"""Recipes: the order is sound, and privacy labels widen through the accounted input alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import pytest

from privcode.presets import resolve
from privcode.recipes import (
    QUEUES,
    RECIPES,
    Label,
    Recipe,
    StageDef,
    labels_of,
    most_restrictive,
    stage_def,
    stages_of,
)
from privcode.specs import JobSpec, RecipeName
from tests.recipes import ADDITIONS, WARM_UP, request_of

DATASETS = {
    "dataset": Label.PRIVATE, "prompts": Label.PUBLIC, "warm_up_pairs": Label.PUBLIC, "kept_pairs": Label.DP,
}  # fmt: skip
PRIVATE_RECIPES = {"jft", "nondpft"}


def spec_of(name: str, **over: Any) -> JobSpec:
    return resolve(request_of(name, **over))


def variants() -> Iterator[tuple[str, JobSpec]]:
    """Each recipe alone and with everything that may be added to it."""
    for name, recipe in RECIPES.items():
        yield name, spec_of(name)
        for addition in sorted(recipe.may_have):
            yield f"{name}+{addition}", spec_of(name, **{addition: ADDITIONS[addition]})
        if len(recipe.may_have) > 1:
            yield f"{name}+all", spec_of(name, **{addition: ADDITIONS[addition] for addition in recipe.may_have})


VARIANTS = [pytest.param(spec, id=name) for name, spec in variants()]
STAGES = [pytest.param(stage, id=f"{name}.{stage.name}") for name, spec in variants() for stage in stages_of(spec)]


def names(spec: JobSpec) -> list[str]:
    return [stage.name for stage in stages_of(spec)]


def test_a_spec_may_name_every_recipe_and_no_other() -> None:
    assert set(get_args(RecipeName)) == set(RECIPES)


@pytest.mark.parametrize("spec", VARIANTS)
def test_a_stage_reads_datasets_and_what_earlier_stages_wrote(spec: JobSpec) -> None:
    there = set(DATASETS)
    for stage in stages_of(spec):
        assert set(stage.reads) <= there, stage.name
        assert not set(stage.writes) & there, stage.name
        assert stage.base is None or stage.base in stage.reads or stage.base in spec.models, stage.name
        there |= set(stage.writes)
    assert {"premium_model", "evaluation", "canary_audit", "report_json", "report_html"} <= there


@pytest.mark.parametrize("spec", VARIANTS)
def test_names_are_unique_and_found(spec: JobSpec) -> None:
    for stage in stages_of(spec):
        assert stage_def(spec, stage.name) == stage
    assert len(set(names(spec))) == len(names(spec))


@pytest.mark.parametrize("spec", VARIANTS)
def test_a_merge_starts_from_what_its_adapter_was_trained_on(spec: JobSpec) -> None:
    trained = {kind: stage.base for stage in stages_of(spec) for kind in stage.writes if kind.endswith("_adapter")}
    merges = [stage for stage in stages_of(spec) if stage.name.startswith("merge_")]
    assert len(merges) == len(trained) > 0
    for merge in merges:
        assert merge.base == trained[merge.reads[0]], merge.name


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_a_worker_and_declares_what_it_keeps_private(stage: StageDef) -> None:
    assert stage.queue in QUEUES
    assert stage.private_writes <= set(stage.writes)
    assert stage.accounted is None or stage.accounted in stage.reads


@pytest.mark.parametrize("stage", STAGES)
def test_only_the_accounted_input_turns_private_into_dp(stage: StageDef) -> None:
    assert stage.accounted == ("dataset" if stage.name == "sanitize" else None)
    for given in product(Label, repeat=len(stage.reads)):
        inputs = dict(zip(stage.reads, given, strict=True))
        others = [label for kind, label in inputs.items() if kind != stage.accounted]
        for kind in stage.writes:
            label = stage.label(kind, inputs)
            if kind in stage.private_writes or Label.PRIVATE in others:
                assert label is Label.PRIVATE
            elif stage.accounted and inputs[stage.accounted] is Label.PRIVATE:
                assert label is Label.DP
            else:
                assert label is most_restrictive(list(given))


def taint(spec: JobSpec) -> tuple[set[str], set[str]]:
    """What was computed from private data at all, and what of it by a way on which no mechanism stands.

    Written without labels, from what the stages read and write.
    """
    touched, unprotected = {"dataset"}, {"dataset"}
    for stage in stages_of(spec):
        protected = {"dataset"} if stage.name == "sanitize" else set()
        if touched & set(stage.reads):
            touched |= set(stage.writes)
        if unprotected & (set(stage.reads) - protected):
            unprotected |= set(stage.writes)
    return touched, unprotected


@pytest.mark.parametrize("spec", VARIANTS)
def test_nothing_from_private_data_without_the_mechanism_is_labelled_dp_or_public(spec: JobSpec) -> None:
    touched, unprotected = taint(spec)
    labels = labels_of(stages_of(spec))
    for kind in {kind for stage in stages_of(spec) for kind in stage.writes}:
        if kind in unprotected | {"training_metrics"}:
            assert labels[kind] is Label.PRIVATE, kind
        else:
            assert labels[kind] is (Label.DP if kind in touched else Label.PUBLIC), kind


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_released(name: str) -> None:
    labels = labels_of(stages_of(spec_of(name)))
    private = {kind for kind, label in labels.items() if label is Label.PRIVATE}
    if name in PRIVATE_RECIPES:
        assert {"premium_model", "evaluation", "evaluation_samples", "canary_audit", "report_json"} <= private
        assert {kind for kind, label in labels.items() if label is not Label.PRIVATE} == set(DATASETS) - {"dataset"}
    else:
        assert private == {"dataset", "training_metrics"}


def test_a_private_prompt_set_would_make_everything_after_synthesis_private() -> None:
    labels = dict(DATASETS) | {"prompts": Label.PRIVATE}
    for stage in stages_of(spec_of("privcode")):
        labels |= {kind: stage.label(kind, {read: labels[read] for read in stage.reads}) for kind in stage.writes}
    assert {labels[kind] for kind in ("candidates", "executed", "synthetic", "premium_model", "report_html")} == {
        Label.PRIVATE
    }
    assert labels["junior_model"] is Label.DP


def test_the_most_restrictive_label_wins() -> None:
    assert most_restrictive([]) is Label.PUBLIC
    assert most_restrictive([Label.PUBLIC, Label.DP]) is Label.DP
    assert most_restrictive([Label.PRIVATE, Label.PUBLIC, Label.DP]) is Label.PRIVATE


ENDING = ["evaluate", "audit", "report"]
ORDER = {
    "privcode": ["sanitize", "merge_junior", "synthesize", "execute", "round_trip", "boost", "merge_premium"],
    "nopostprocess": ["sanitize", "merge_junior", "synthesize", "collect", "boost", "merge_premium"],
    "dpft": ["sanitize", "merge_premium"],
    "nondpft": ["finetune", "merge_premium"],
    "jft": ["mask", "tune_masked", "merge_masked", "sanitize", "merge_premium"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_order_is_the_methods(name: str) -> None:
    alike = {"noast": "privcode", "stable_lambda": "privcode", "noevol": "dpft"}.get(name, name)
    assert names(spec_of(name)) == [*ORDER[alike], *ENDING]


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if "warm_up" in recipe.may_have])
def test_a_warm_up_comes_first_and_carries_all_that_started_from_the_public_model(name: str) -> None:
    plain, warm = stages_of(spec_of(name)), stages_of(spec_of(name, warm_up=WARM_UP))
    assert [stage.name for stage in warm] == ["warm_up", "merge_warm_up", *(stage.name for stage in plain)]
    for before, after in zip(plain, warm[2:], strict=True):
        started = before.base == "sanitize.model"
        assert after.base == ("warm_model" if started else before.base)
        assert set(after.reads) - set(before.reads) == ({"warm_model"} if started else set())
    assert any(stage.name == "sanitize" and stage.base in ("warm_model", "masked_model") for stage in warm)


def test_every_recipe_with_a_sanitize_stage_may_be_warmed_up() -> None:
    for recipe in RECIPES.values():
        has_sanitize = any(stage.accounted for stage in recipe.stages)
        assert ("warm_up" in recipe.may_have) == has_sanitize


def test_rows_are_limited_in_dpft_and_nondpft_alone() -> None:
    assert {name for name, recipe in RECIPES.items() if "rows_of_job" in recipe.may_have} == {"dpft", "nondpft"}
    for name in ("dpft", "nondpft"):
        reading = [stage for stage in stages_of(spec_of(name, rows_of_job="job_1")) if "kept_pairs" in stage.reads]
        assert [stage.name for stage in reading] == [names(spec_of(name))[0]]


def test_a_recipe_that_reserves_budget_has_exactly_one_accounted_stage() -> None:
    def count(recipe: Recipe) -> int:
        return sum(bool(stage.accounted) for stage in recipe.stages)

    for recipe in RECIPES.values():
        assert count(recipe) == int("privacy" in recipe.needs)


@pytest.mark.parametrize("spec", VARIANTS)
def test_a_stored_spec_has_the_same_stages(spec: JobSpec) -> None:
    assert stages_of(JobSpec.model_validate_json(json.dumps(spec.model_dump(mode="json")))) == stages_of(spec)

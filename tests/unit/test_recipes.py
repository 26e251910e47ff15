"""Recipes: the order is sound, and privacy labels widen through the accounted stage alone."""

from __future__ import annotations

from itertools import chain, combinations_with_replacement

import pytest

from privcode.recipes import QUEUES, RECIPES, Label, StageDef, most_restrictive, stage_def

DATASETS = {"dataset": Label.PRIVATE, "prompts": Label.PUBLIC}
STAGES = [pytest.param(stage, id=f"{recipe}.{stage.name}") for recipe, stages in RECIPES.items() for stage in stages]


def labels_of(recipe: str, datasets: dict[str, Label]) -> dict[str, Label]:
    """The label of every artifact of a job over these datasets."""
    labels = dict(datasets)
    for stage in RECIPES[recipe]:
        inputs = [labels[kind] for kind in stage.reads]
        labels |= {kind: stage.label(kind, inputs) for kind in stage.writes}
    return labels


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stage_reads_datasets_and_what_earlier_stages_wrote(recipe: str) -> None:
    there = set(DATASETS)
    for stage in RECIPES[recipe]:
        assert set(stage.reads) <= there, stage.name
        assert not set(stage.writes) & there, stage.name
        there |= set(stage.writes)


@pytest.mark.parametrize("recipe", RECIPES)
def test_names_are_unique_and_found(recipe: str) -> None:
    for stage in RECIPES[recipe]:
        assert stage_def(recipe, stage.name) is stage
    assert len({stage.name for stage in RECIPES[recipe]}) == len(RECIPES[recipe])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_a_worker_and_declares_what_it_keeps_private(stage: StageDef) -> None:
    assert stage.queue in QUEUES
    assert stage.private_writes <= set(stage.writes)


def combinations(stage: StageDef) -> list[list[Label]]:
    sizes = range(len(stage.reads) + 1)
    return [
        list(labels) for labels in chain.from_iterable(combinations_with_replacement(Label, size) for size in sizes)
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_only_the_accounted_stage_turns_private_into_dp(stage: StageDef) -> None:
    assert stage.accounted == (stage.name == "sanitize")
    for inputs in combinations(stage):
        for kind in stage.writes:
            label = stage.label(kind, inputs)
            if kind in stage.private_writes:
                assert label is Label.PRIVATE
            elif Label.PRIVATE in inputs:
                assert label is (Label.DP if stage.accounted else Label.PRIVATE)
            else:
                assert label is most_restrictive(inputs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_with_private_data_everything_released_is_dp_and_losses_stay_private(recipe: str) -> None:
    labels = labels_of(recipe, DATASETS)
    assert {kind for kind, label in labels.items() if label is Label.PRIVATE} == {"dataset", "training_metrics"}
    assert {kind for kind, label in labels.items() if label is Label.PUBLIC} == {"prompts"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_private_prompts_would_make_everything_after_synthesis_private(recipe: str) -> None:
    labels = labels_of(recipe, {**DATASETS, "prompts": Label.PRIVATE})
    assert {labels[kind] for kind in ("candidates", "executed", "synthetic", "premium_model", "report_html")} == {
        Label.PRIVATE
    }
    assert labels["junior_model"] is Label.DP


def test_the_most_restrictive_label_wins() -> None:
    assert most_restrictive([]) is Label.PUBLIC
    assert most_restrictive([Label.PUBLIC, Label.DP]) is Label.DP
    assert most_restrictive([Label.PRIVATE, Label.PUBLIC, Label.DP]) is Label.PRIVATE

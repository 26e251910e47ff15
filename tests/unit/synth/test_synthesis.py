from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lm.engine import make_generator
from lm.models import load_tokenizer
from privcode.specs import SynthesizeSpec
from services.synth.core.synthesis import choose_prompts, synthesize
from services.synth.stage import run_synthesize
from tests.stages import metrics, output_rows, progress, stage_folder
from tests.tiny import SOLUTION

PROBLEMS = [f"Write a Python function number {index}." for index in range(7)]
ANSWER = f"```python\n{SOLUTION}\n```"


@given(available=st.integers(1, 300), wanted=st.none() | st.integers(1, 300), seed=st.integers(0, 2**63 - 1))
def test_the_choice_is_ascending_without_repeats_and_repeats_with_the_seed(
    available: int, wanted: int | None, seed: int
) -> None:
    chosen = choose_prompts(available, max_prompts=wanted, seed=seed)
    assert len(chosen) == min(available, wanted or available)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(available))
    assert chosen == choose_prompts(available, max_prompts=wanted, seed=seed)


def test_the_choice_is_spread_over_all_prompts_by_the_seed() -> None:
    choices = [choose_prompts(1000, max_prompts=10, seed=seed) for seed in range(20)]
    assert len({tuple(choice) for choice in choices}) == 20
    assert max(max(choice) for choice in choices) > 900


def test_every_sample_of_a_prompt_is_a_candidate_of_its_own(tiny_llama: Path) -> None:
    spec = SynthesizeSpec(max_prompts=3, samples_per_prompt=2, temperature=0.1, max_new_tokens=32)
    candidates, tokens = synthesize(
        PROBLEMS,
        spec=spec,
        template="chat",
        tokenizer=load_tokenizer(tiny_llama),
        generator=make_generator(tiny_llama, engine="transformers", batch_size=4),
    )
    assert [candidate.id for candidate in candidates] == [f"c{number:06d}" for number in range(6)]
    indices = [candidate.prompt_index for candidate in candidates]
    assert indices[::2] == indices[1::2] == choose_prompts(7, max_prompts=3, seed=0)
    assert all(candidate.problem == PROBLEMS[candidate.prompt_index] for candidate in candidates)
    assert {candidate.completion for candidate in candidates} == {ANSWER}
    assert tokens == 6 * 11


def test_several_samples_that_would_all_be_the_same_are_refused() -> None:
    with pytest.raises(ValidationError, match="samples_per_prompt 2 at temperature 0"):
        SynthesizeSpec(samples_per_prompt=2)


@pytest.mark.parametrize(("template", "answer"), [("chat", ANSWER), ("qa", f" {ANSWER}")])
def test_the_stage(
    tmp_path: Path, tiny_llama: Path, capfd: pytest.CaptureFixture[str], template: str, answer: str
) -> None:
    stage = stage_folder(
        tmp_path / "stage",
        stage="synthesize",
        spec={"prompt_template": template, "synthesize": {"max_prompts": 5, "max_new_tokens": 40}},
        inputs={
            "junior_model": tiny_llama,
            "prompts": [{"problem": problem, "solution": "", "lang": "python"} for problem in PROBLEMS],
        },
        models_dir=tmp_path,
    )
    run_synthesize(stage)
    rows = output_rows(stage, "candidates")
    assert [(row["completion"], row["finish_reason"]) for row in rows] == [(answer, "stop")] * 5
    assert [row["problem"] for row in rows] == [PROBLEMS[row["prompt_index"]] for row in rows]
    found = metrics(stage)
    assert found.pop("engine") in ("transformers", "vllm")
    assert found == {"candidates": 5, "tokens": 5 * (11 if template == "chat" else 12), "finish_length": 0}
    assert progress(capfd.readouterr().out) == [(done, 5) for done in range(6)]


def test_the_stage_counts_answers_that_were_cut(tmp_path: Path, tiny_llama: Path) -> None:
    stage = stage_folder(
        tmp_path / "stage",
        stage="synthesize",
        spec={"synthesize": {"max_prompts": None, "max_new_tokens": 4}},
        inputs={"junior_model": tiny_llama, "prompts": [{"problem": problem} for problem in PROBLEMS]},
        models_dir=tmp_path,
    )
    run_synthesize(stage)
    assert metrics(stage)["finish_length"] == metrics(stage)["candidates"] == len(PROBLEMS)

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from lm.engine import make_generator
from lm.generator import Completion
from lm.models import load_tokenizer
from privcode.errors import StageFailed
from privcode.specs import RoundTripSpec
from services.validator.core.describe import Program, describe, describe_prompt, description_of

PROGRAM = Program(language="python", code="def same(value):\n    return value")


def spec(**over: object) -> RoundTripSpec:
    return RoundTripSpec.model_validate({"describer": "local/d", "scorer": "local/s", "tau": 0.5, **over})


def test_several_samples_that_would_all_be_the_same_are_refused() -> None:
    with pytest.raises(ValidationError, match="samples 2 at temperature 0"):
        spec(samples=2, temperature=0.0)


def test_the_prompt_ends_with_the_opening_words_of_the_models_own_turn(tiny_llama: Path) -> None:
    prompt = describe_prompt(PROGRAM, tokenizer=load_tokenizer(tiny_llama))
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n**You are tasked with")
    assert f"```python\n{PROGRAM.code}\n```" in prompt
    assert prompt.count("<|im_start|>assistant") == 2
    assert "[END]**<|im_end|>" in prompt


def test_code_is_taken_as_it_is(tiny_llama: Path) -> None:
    code = "def f():\n    return '{code} {language} {0} {{ %s'"
    prompt = describe_prompt(Program(language="python", code=code), tokenizer=load_tokenizer(tiny_llama))
    assert code in prompt


def test_a_model_without_a_chat_template_describes_nothing(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = None
    with pytest.raises(StageFailed) as caught:
        describe_prompt(PROGRAM, tokenizer=tokenizer)
    assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize(
    ("text", "finish", "description"),
    [
        (" adding\n two numbers. ", "stop", "You are tasked with adding two numbers."),
        (" adding two numb", "length", None),
        ("", "stop", None),
        (" \n", "stop", None),
    ],
    ids=["closed", "cut off", "nothing", "blank"],
)
def test_what_matches(text: str, finish: Literal["stop", "length"], description: str | None) -> None:
    assert description_of(Completion(text=text, tokens=3, finish_reason=finish)) == description


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_taught_model_describes(tiny_llama: Path, temperature: float) -> None:
    done: list[int] = []
    described = describe(
        [PROGRAM, Program(language="python", code="import os\n" * 30)],
        spec=spec(samples=1 if temperature == 0 else 3, temperature=temperature, max_new_tokens=30),
        tokenizer=load_tokenizer(tiny_llama),
        generator=make_generator(tiny_llama, engine="transformers", batch_size=4),
        on_done=done.append,
    )
    assert all(text is not None and text.startswith("You are tasked with writing a Python") for text in described)
    assert not any(mark in str(text) for text in described for mark in ("[END]", "**"))
    assert done == [1, 2]


def test_what_is_cut_off_is_no_description(tiny_llama: Path) -> None:
    described = describe(
        [PROGRAM],
        spec=spec(samples=2, max_new_tokens=3),
        tokenizer=load_tokenizer(tiny_llama),
        generator=make_generator(tiny_llama, engine="transformers", batch_size=4),
    )
    assert described == [None]

"""What every generation engine keeps to, on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm.engine import Engine, make_generator
from lm.generator import Generator, SamplingParams
from lm.models import load_tokenizer
from lm.prompting import prompt_text
from privcode.errors import StageFailed
from tests.tiny import CONTEXT, SOLUTION

PROBLEMS = [
    "Add.",
    "Write a function that turns a Roman number into an integer, or raises ValueError.\n\nLower case is fine too.",
    "Return the sum of a list of numbers.",
    "Ä ö ü: naïve café, 12345 \U0001f600.",
    "word " * 120,
]
# Text that the model was never taught to go on from: what it samples is anything.
OPEN_ENDED = ["import", "the", "import os"]


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def generator(request: pytest.FixtureRequest, tiny_llama: Path) -> Generator:
    engine: Engine = request.param
    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed: its engine is not tested here")
    return make_generator(tiny_llama, engine=engine, batch_size=4)


@pytest.fixture(scope="module")
def prompts(tiny_llama: Path) -> list[str]:
    tokenizer = load_tokenizer(tiny_llama)
    return [prompt_text(problem, template="chat", tokenizer=tokenizer) for problem in PROBLEMS]


def test_answers_end_with_the_end_token_which_is_not_text(generator: Generator, prompts: list[str]) -> None:
    answers = generator.generate(prompts, params=SamplingParams(max_new_tokens=48))
    assert [len(samples) for samples in answers] == [1] * len(prompts)
    for (answer,) in answers:
        assert (answer.text, answer.finish_reason) == (f"```python\n{SOLUTION}\n```", "stop")
        assert answer.tokens < 48


def test_greedy_answers_depend_neither_on_order_nor_on_company(generator: Generator) -> None:
    params = SamplingParams(max_new_tokens=24)
    texts = [*OPEN_ENDED, "x = [1, 2", "word " * 50, "def f("]
    together = [one.text for (one,) in generator.generate(texts, params=params)]
    reverse = [one.text for (one,) in generator.generate(texts[::-1], params=params)]
    alone = [generator.generate([text], params=params)[0][0].text for text in texts]
    assert together == reverse[::-1] == alone
    assert len(set(together)) > 1


def test_samples_repeat_with_the_seed_and_only_with_it(generator: Generator) -> None:
    def texts(seed: int) -> list[list[str]]:
        params = SamplingParams(max_new_tokens=12, temperature=2.0, n=3, seed=seed)
        return [[one.text for one in samples] for samples in generator.generate(OPEN_ENDED, params=params)]

    first = texts(1)
    assert [len(samples) for samples in first] == [3, 3, 3]
    assert all(len(set(samples)) == 3 for samples in first)
    assert texts(1) == first
    assert texts(2) != first


def test_a_stop_string_ends_the_text_before_it(generator: Generator, prompts: list[str]) -> None:
    params = SamplingParams(max_new_tokens=48, stop=("never", "(value):\n    ret"))
    for (answer,) in generator.generate(prompts, params=params):
        assert (answer.text, answer.finish_reason) == ("```python\ndef same", "stop")


def test_max_new_tokens_cuts_the_text(generator: Generator, prompts: list[str]) -> None:
    for (answer,) in generator.generate(prompts, params=SamplingParams(max_new_tokens=3)):
        assert (answer.finish_reason, answer.tokens) == ("length", 3)
        assert answer.text == "```python\ndef same"


def test_progress_counts_prompts_up_to_all(generator: Generator, prompts: list[str]) -> None:
    seen: list[int] = []
    generator.generate(prompts, params=SamplingParams(max_new_tokens=8, temperature=1.0, n=2), on_done=seen.append)
    assert seen == list(range(1, len(prompts) + 1))


def test_a_prompt_beyond_the_context_is_refused_without_being_shown(generator: Generator) -> None:
    params = SamplingParams(max_new_tokens=CONTEXT - 2)
    assert generator.generate(["the"], params=SamplingParams(max_new_tokens=1))
    with pytest.raises(StageFailed, match=f"prompt 1 has .* context of {CONTEXT}") as caught:
        generator.generate(["the", "secret " * 3], params=params)
    assert caught.value.code == "prompt_too_long"
    assert "secret" not in str(caught.value)


def test_an_empty_prompt_is_refused(generator: Generator) -> None:
    with pytest.raises(StageFailed) as caught:
        generator.generate([""], params=SamplingParams(max_new_tokens=1))
    assert caught.value.code == "empty_prompt"


def test_no_prompts_no_answers(generator: Generator) -> None:
    assert generator.generate([], params=SamplingParams(max_new_tokens=1)) == []


def test_several_greedy_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="n = 2"):
        SamplingParams(max_new_tokens=1, n=2)

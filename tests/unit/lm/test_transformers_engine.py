from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lm.engine import engine_name, make_generator
from lm.generator import SamplingParams
from lm.models import load_model, load_tokenizer
from lm.transformers_engine import TransformersGenerator
from privcode.errors import StageFailed

PROMPTS = ["def", "def parse(self, args", "word " * 40, "def parse(self, args=None", "class A:\n    x = 1", "import"]
# The first of them is how all the others begin.
SHARED = ["from typing import Any\n" * 4 + "x = [" + prompt for prompt in ("", *PROMPTS)]


@pytest.fixture(scope="module")
def wild_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untaught model with large weights: each token that it chooses depends on all the tokens before it and on
    where they stand, so that a wrong mask or position shows."""
    folder = tmp_path_factory.mktemp("wild")
    config = LlamaConfig.from_pretrained(tiny_llama, initializer_range=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(tiny_llama).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(wild_llama: Path) -> dict[str, str]:
    """Each prompt's greedy continuation by transformers itself, one prompt at a time and without padding."""
    model, tokenizer = load_model(wild_llama), load_tokenizer(wild_llama)
    texts = {}
    for prompt in PROMPTS + SHARED:
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        texts[prompt] = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return texts


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize("prompts", [PROMPTS, SHARED], ids=["ragged", "shared beginning"])
def test_greedy_is_what_transformers_generates(
    wild_llama: Path, reference: dict[str, str], prompts: list[str], batch_size: int
) -> None:
    generator = TransformersGenerator(wild_llama, batch_size=batch_size)
    answers = generator.generate(prompts, params=SamplingParams(max_new_tokens=20))
    assert [answer.text for (answer,) in answers] == [reference[prompt] for prompt in prompts]


def test_rows_that_end_early_leave_the_others_as_they_are(wild_llama: Path, reference: dict[str, str]) -> None:
    generator = TransformersGenerator(wild_llama, batch_size=32)
    answers = generator.generate(PROMPTS, params=SamplingParams(max_new_tokens=20, stop=("s", " ")))
    assert [answer.text for (answer,) in answers] == [re.split("s| ", reference[prompt])[0] for prompt in PROMPTS]
    assert len({answer.tokens for (answer,) in answers}) > 2


def test_samples_depend_neither_on_the_batch_nor_on_the_order(wild_llama: Path) -> None:
    params = SamplingParams(max_new_tokens=10, temperature=1.5, n=3, seed=7)
    large = TransformersGenerator(wild_llama, batch_size=32).generate(PROMPTS, params=params)
    small = TransformersGenerator(wild_llama, batch_size=2).generate(PROMPTS[::-1], params=params)
    assert large == small[::-1]


def test_the_same_prompt_twice_is_sampled_twice(tiny_llama: Path) -> None:
    params = SamplingParams(max_new_tokens=10, temperature=2.0)
    (first,), (second,) = TransformersGenerator(tiny_llama, batch_size=4).generate(["import", "import"], params=params)
    assert first.text != second.text


def test_sampling_follows_the_distribution(tiny_llama: Path) -> None:
    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer("import")["input_ids"]])).logits[0, -1]
    expected = Counter[str]()  # by text: halves of characters all decode to the same one
    for token, probability in enumerate(torch.softmax(logits.double() / 0.2, dim=-1).tolist()):
        expected[tokenizer.decode([token], skip_special_tokens=True)] += probability
    params = SamplingParams(max_new_tokens=1, temperature=0.2, n=2000)
    (samples,) = TransformersGenerator(tiny_llama, batch_size=500).generate(["import"], params=params)
    found = Counter(sample.text for sample in samples)
    for text, probability in expected.most_common(10):
        deviation = (probability * (1 - probability) / 2000) ** 0.5
        assert abs(found[text] / 2000 - probability) < 4 * deviation


def test_auto_takes_vllm_only_where_it_is_installed() -> None:
    assert engine_name("transformers") == "transformers"
    assert engine_name("auto") == ("vllm" if importlib.util.find_spec("vllm") else "transformers")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_where_it_is_missing_is_an_error_not_another_engine(tiny_llama: Path) -> None:
    with pytest.raises(StageFailed) as caught:
        make_generator(tiny_llama, engine="vllm", batch_size=1)
    assert caught.value.code == "engine_unavailable"

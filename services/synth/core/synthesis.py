"""Stage 3 (method.md): the junior answers public prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from lm.generator import Generator, SamplingParams
from lm.prompting import prompt_text
from privcode.results import Candidate
from privcode.specs import PromptTemplate, SynthesizeSpec


def choose_prompts(available: int, *, max_prompts: int | None, seed: int) -> list[int]:
    """Indices of the prompts to use, ascending: all, or a uniform sample of ``max_prompts`` that ``seed`` decides."""
    if max_prompts is None or max_prompts >= available:
        return list(range(available))
    return sorted(random.Random(seed).sample(range(available), max_prompts))


def synthesize(
    problems: Sequence[str],
    *,
    spec: SynthesizeSpec,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    generator: Generator,
    on_done: Callable[[int], None] | None = None,
) -> tuple[list[Candidate], int]:
    """``spec.samples_per_prompt`` candidates for each chosen problem, and the tokens that were generated in all.

    An answer ends with the model's end token or at ``spec.max_new_tokens``. There is no stop string: a closing fence
    may stand inside a string literal of the code.
    """
    chosen = choose_prompts(len(problems), max_prompts=spec.max_prompts, seed=spec.seed)
    answers = generator.generate(
        [prompt_text(problems[index], template=template, tokenizer=tokenizer) for index in chosen],
        params=SamplingParams(
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            n=spec.samples_per_prompt,
            seed=spec.seed,
        ),
        on_done=on_done,
    )
    pairs = [(index, answer) for index, samples in zip(chosen, answers, strict=True) for answer in samples]
    candidates = [
        Candidate(
            id=f"c{number:06d}",
            prompt_index=index,
            problem=problems[index],
            completion=answer.text,
            finish_reason=answer.finish_reason,
        )
        for number, (index, answer) in enumerate(pairs)
    ]
    return candidates, sum(answer.tokens for _, answer in pairs)

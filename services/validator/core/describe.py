"""Stage 5, first half (method.md): an instruct model says what problem a piece of code solves.

The model is asked for ``**You are tasked with ... [END]**``, as in the paper. A small model never closes that form by
itself; one example turn and an answer whose opening words are already there make it do so, and a larger one loses
nothing by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from transformers import PreTrainedTokenizerBase

from lm.generator import Completion, Generator, SamplingParams
from lm.prompting import require_chat_template
from privcode.specs import RoundTripSpec

OPENING: Final = "You are tasked with"
# What closes a description; a small model that forgets the mark starts a new paragraph instead.
CLOSINGS: Final = ("[END]", "**", "\n\n")

_REQUEST: Final = """\
Describe the problem that this code solves, in one or two sentences and without quoting the code. \
Answer in exactly this form: **You are tasked with ... [END]**

```{language}
{code}
```"""

_EXAMPLE_CODE: Final = """\
def running_total(values, start=0):
    totals = []
    for value in values:
        start += value
        totals.append(start)
    return totals"""

_EXAMPLE_ANSWER: Final = (
    f"**{OPENING} writing a Python function `running_total(values, start=0)` that returns the list of the partial sums "
    "of a sequence of numbers, beginning at a start value. [END]**"
)


@dataclass(frozen=True, kw_only=True)
class Program:
    """Code to describe; ``language`` is its lower-case name."""

    language: str
    code: str


def describe_prompt(program: Program, *, tokenizer: PreTrainedTokenizerBase) -> str:
    """The conversation up to and including the opening words of the model's answer.

    Raises :class:`privcode.errors.StageFailed` (``no_chat_template``) if the describer is not a chat model.
    """
    require_chat_template(tokenizer)
    conversation = [
        {"role": "user", "content": _REQUEST.format(language="python", code=_EXAMPLE_CODE)},
        {"role": "assistant", "content": _EXAMPLE_ANSWER},
        {"role": "user", "content": _REQUEST.format(language=program.language, code=program.code)},
    ]
    text: str = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    return f"{text}**{OPENING}"


def description_of(completion: Completion) -> str | None:
    """The description that a continuation of :func:`describe_prompt` makes, or None if it does not match: it says
    nothing, or it was cut off before anything closed it."""
    if completion.finish_reason == "length" or not completion.text.strip():
        return None
    return f"{OPENING} {' '.join(completion.text.split())}"


def describe(
    programs: Sequence[Program],
    *,
    spec: RoundTripSpec,
    tokenizer: PreTrainedTokenizerBase,
    generator: Generator,
    on_done: Callable[[int], None] | None = None,
) -> list[str | None]:
    """For each program the first of ``spec.samples`` descriptions that matches, None where none does."""
    completions = generator.generate(
        [describe_prompt(program, tokenizer=tokenizer) for program in programs],
        params=SamplingParams(
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            n=spec.samples,
            stop=CLOSINGS,
            seed=spec.seed,
        ),
        on_done=on_done,
    )
    return [
        next((text for sample in samples if (text := description_of(sample)) is not None), None)
        for samples in completions
    ]

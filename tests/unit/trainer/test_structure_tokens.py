"""From structural spans to the tokens that PrivSA holds, for every language."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lm.prompting import answer_code_span, answer_text, prompt_text
from privcode.languages import LANGUAGES
from privcode.specs import PromptTemplate
from services.trainer.core.sequences import TokenSequence, make_sequence
from tests.unit.trainer.structure_samples import CODE, MARKED, expected_spans

PROBLEM = "Grüße: if (x) { for while class é"
TEMPLATES: tuple[PromptTemplate, ...] = ("chat", "qa")


def sequence_of(
    solution: str, *, lang: str, template: PromptTemplate, tokenizer: PreTrainedTokenizerFast, seq_length: int = 4096
) -> TokenSequence:
    row = {"problem": PROBLEM, "solution": solution, "lang": lang}
    return make_sequence(row, template=template, tokenizer=tokenizer, seq_length=seq_length)


def runs(mask: torch.Tensor) -> list[tuple[int, int]]:
    """First and one-past-last position of each run of true values."""
    flags = [False, *mask.tolist(), False]
    edges = [index for index in range(len(flags) - 1) if flags[index] != flags[index + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_tokens_of_every_header_and_no_others(
    lang: str, template: PromptTemplate, tokenizer: PreTrainedTokenizerFast
) -> None:
    code = CODE[lang]
    sequence = sequence_of(code, lang=lang, template=template, tokenizer=tokenizer)
    held = [tokenizer.decode(sequence.token_ids[first:end]) for first, end in runs(sequence.structure)]
    # Headers on one line lie within each other; those on successive lines have a line break between them, which may be
    # of either's token. What is left is that the text is the headers', in their order.
    lines: dict[int, str] = {}
    for start, end in expected_spans(MARKED[lang]):
        lines.setdefault(end, code[start:end])
    squeezed = ["".join(text.split()) for text in ("".join(held), "".join(lines.values()))]
    assert squeezed[0] == squeezed[1]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("lang", LANGUAGES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_structure_lies_within_the_solution(
    lang: str, template: PromptTemplate, tokenizer: PreTrainedTokenizerFast, data: st.DataObject
) -> None:
    code = CODE[lang][data.draw(st.integers(0, 20)) :] if data.draw(st.booleans()) else CODE[lang].rstrip()
    whole = sequence_of(code, lang=lang, template=template, tokenizer=tokenizer)
    prompt = prompt_text(PROBLEM, template=template, tokenizer=tokenizer)
    first, end = answer_code_span(code, lang=lang, template=template)
    text = prompt + answer_text(code, lang=lang, template=template) + tokenizer.eos_token
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    within = torch.tensor([a < len(prompt) + end and b > len(prompt) + first for a, b in offsets])
    assert not (whole.structure & ~within).any()
    assert not (whole.structure & ~whole.answer).any()
    assert not whole.structure[-1]

    length = data.draw(st.integers(1, len(whole)))
    cut = sequence_of(code, lang=lang, template=template, tokenizer=tokenizer, seq_length=length)
    assert torch.equal(cut.structure, whole.structure[:length])
    assert torch.equal(cut.token_ids, whole.token_ids[:length])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("lang", LANGUAGES)
def test_code_without_structure_or_with_an_error_holds_nothing(
    lang: str, template: PromptTemplate, tokenizer: PreTrainedTokenizerFast
) -> None:
    for code in ("", "x", f"{CODE[lang]}\n)"):
        assert not sequence_of(code, lang=lang, template=template, tokenizer=tokenizer).structure.any()

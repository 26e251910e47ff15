from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lm.prompting import answer_text, prompt_text
from services.trainer.core.sequences import TokenSequence, collate, make_sequence, micro_batches

ROW = {
    "problem": "Grüße eine Liste, ohne if.",
    "solution": "def grüße(xs):\n    for x in xs:\n        print('é', x)\n",
    "lang": "python",
}
CPU = torch.device("cpu")


def text_of(sequence: TokenSequence, mask: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode(sequence.token_ids[mask]))


@pytest.mark.parametrize("template", ["chat", "qa"])
def test_answer_and_structure_are_found_by_offset(template: str, tokenizer: PreTrainedTokenizerFast) -> None:
    sequence = make_sequence(ROW, template=template, tokenizer=tokenizer, seq_length=512)
    prompt = prompt_text(ROW["problem"], template=template, tokenizer=tokenizer)
    answer = answer_text(ROW["solution"], lang="python", template=template)
    assert text_of(sequence, ~sequence.answer, tokenizer) == prompt
    assert text_of(sequence, sequence.answer, tokenizer) == answer + "<|im_end|>"
    structure = text_of(sequence, sequence.structure, tokenizer)
    # A token may begin with the white space before a header; its text is then part of what is held.
    assert structure.replace(" ", "") == "defgrüße(xs):forxinxs:"
    assert not (sequence.structure & ~sequence.answer).any()
    # What the model is given at synthesis is exactly how the training sequence begins.
    given = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert sequence.token_ids[~sequence.answer].tolist() == given


def test_one_record_is_one_truncated_sequence(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = make_sequence(ROW, template="chat", tokenizer=tokenizer, seq_length=512)
    cut = make_sequence(ROW, template="chat", tokenizer=tokenizer, seq_length=40)
    assert len(cut) == 40 < len(whole)
    for name in ("token_ids", "answer", "structure"):
        assert torch.equal(getattr(cut, name), getattr(whole, name)[:40])


def test_a_prompt_that_fills_the_sequence_has_no_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    row = {**ROW, "problem": "long " * 200}
    sequence = make_sequence(row, template="chat", tokenizer=tokenizer, seq_length=64)
    assert not sequence.answer.any()
    assert micro_batches([[sequence]], size=4) == []


def test_micro_batches_sort_by_length_and_keep_every_example(sequences: list[TokenSequence]) -> None:
    batches = [collate(rows, device=CPU) for rows in micro_batches([[one] for one in sequences], size=2)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    widths = [batch.token_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == max(map(len, sequences))
    assert sum(int(batch.answer.sum()) for batch in batches) == sum(int(s.answer.sum()) for s in sequences)
    for batch in batches:
        assert batch.token_ids.shape == batch.answer.shape == batch.structure.shape

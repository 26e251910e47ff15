"""From records to token sequences: one sequence a record, never several, so that the record is the unit of privacy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lm.prompting import answer_code_span, answer_text, prompt_text
from privcode.specs import PromptTemplate
from services.trainer.core.structure import structural_spans


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """One record, truncated to ``seq_length``.

    ``token_ids``: int64 [length]. ``answer`` and ``structure``: bool [length], the tokens whose prediction the
    cross-entropy and the KL term are about; structural tokens are answer tokens, and the first token is neither.
    """

    token_ids: Tensor
    answer: Tensor
    structure: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded sequences. All three tensors are [batch, longest]; padding is neither answer nor structure."""

    token_ids: Tensor
    answer: Tensor
    structure: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)


def make_sequence(
    row: Mapping[str, str], *, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, seq_length: int
) -> TokenSequence:
    """Tokens of prompt, answer and end-of-sequence for a row with ``problem``, ``solution`` and ``lang``."""
    prompt = prompt_text(row["problem"], template=template, tokenizer=tokenizer)
    answer = answer_text(row["solution"], lang=row["lang"], template=template)
    code_start, _ = answer_code_span(row["solution"], lang=row["lang"], template=template)
    encoded = tokenizer(
        f"{prompt}{answer}{tokenizer.eos_token}", add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    token_ids = torch.tensor(encoded["input_ids"][:seq_length], dtype=torch.int64)
    starts, ends = torch.tensor(encoded["offset_mapping"][:seq_length], dtype=torch.int64).reshape(-1, 2).unbind(1)
    is_answer = ends > len(prompt)
    is_answer[:1] = False  # nothing predicts the first token
    is_structure = torch.zeros_like(is_answer)
    for start, end in structural_spans(row["solution"], lang=row["lang"]):
        shift = len(prompt) + code_start
        is_structure |= (starts < shift + end) & (ends > shift + start)
    return TokenSequence(token_ids=token_ids, answer=is_answer, structure=is_structure & is_answer)


def collate(sequences: Sequence[TokenSequence], *, device: torch.device) -> Batch:
    """Pad on the right. The padding's token id is 0: attention is causal, so that no real position sees it."""

    def pad(tensors: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device)

    return Batch(
        token_ids=pad([sequence.token_ids for sequence in sequences]),
        answer=pad([sequence.answer for sequence in sequences]),
        structure=pad([sequence.structure for sequence in sequences]),
    )


def micro_batches(sequences: Sequence[TokenSequence], *, size: int, device: torch.device) -> list[Batch]:
    """Cut an already sampled lot into batches of at most ``size``, longest first, so that little is padding.

    Sequences without an answer token (the prompt fills ``seq_length``) have no loss and are left out.
    """
    with_answer = [sequence for sequence in sequences if bool(sequence.answer.any())]
    ordered = sorted(with_answer, key=len, reverse=True)
    return [collate(ordered[start : start + size], device=device) for start in range(0, len(ordered), size)]

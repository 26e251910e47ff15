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


@dataclass(frozen=True, kw_only=True, eq=False)
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
class Row:
    """A record of the unit number ``unit`` of a lot. ``weight``: 1 / (records of that unit in the lot), so that a
    unit's gradient is the mean of its records' gradients."""

    sequence: TokenSequence
    unit: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded rows. The masks and ids are [batch, longest]; padding is neither answer nor structure. ``units``:
    int64 [batch], not decreasing; ``weights``: float32 [batch]."""

    sequences: tuple[TokenSequence, ...]
    token_ids: Tensor
    answer: Tensor
    structure: Tensor
    units: Tensor
    weights: Tensor

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


def collate(rows: Sequence[Row], *, device: torch.device) -> Batch:
    """Pad on the right. The padding's token id is 0: attention is causal, so that no real position sees it."""

    def pad(tensors: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device)

    sequences = tuple(row.sequence for row in rows)
    return Batch(
        sequences=sequences,
        token_ids=pad([sequence.token_ids for sequence in sequences]),
        answer=pad([sequence.answer for sequence in sequences]),
        structure=pad([sequence.structure for sequence in sequences]),
        units=torch.tensor([row.unit for row in rows], device=device),
        weights=torch.tensor([row.weight for row in rows], dtype=torch.float32, device=device),
    )


def micro_batches(lot: Sequence[Sequence[TokenSequence]], *, size: int) -> list[list[Row]]:
    """Cut an already sampled lot of units into at most ``size`` rows each.

    Units with a long record come first, so that little is padding; a unit's rows stay together, and may be cut by the
    end of a micro-batch. Sequences without an answer token (the prompt fills ``seq_length``) have no loss and are left
    out.
    """
    units = [[sequence for sequence in unit if bool(sequence.answer.any())] for unit in lot]
    units = sorted((unit for unit in units if unit), key=lambda unit: max(map(len, unit)), reverse=True)
    rows = [
        Row(sequence=sequence, unit=number, weight=1 / len(unit))
        for number, unit in enumerate(units)
        for sequence in unit
    ]
    return [rows[start : start + size] for start in range(0, len(rows), size)]

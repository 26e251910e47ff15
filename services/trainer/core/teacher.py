"""PrivSA's teacher: the public base model's hidden states at structural positions, from the same network with its
adapter off."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor

from services.trainer.core.sequences import Batch, TokenSequence


class Teacher(Protocol):
    def __call__(self, batch: Batch) -> Tensor:
        """Hidden states before the head at the positions that predict structural tokens: [structural tokens, width], in
        the order of ``batch.structure.nonzero()``; no gradient."""
        ...


def hidden_states(model: PeftModel, token_ids: Tensor) -> Tensor:
    """Last hidden states [batch, length, width]. There is no attention mask: attention is causal, padding on the
    right."""
    hidden: Tensor = model.get_base_model().base_model(input_ids=token_ids, use_cache=False).last_hidden_state
    return hidden


class InlineTeacher:
    """Asks the base model at each call, about rows that have structure and no further than their last of it."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        some = batch.structure.any(dim=1)
        rows, positions = batch.structure[some].nonzero(as_tuple=True)
        last = int(positions.max())
        with self._model.disable_adapter():
            hidden = hidden_states(self._model, batch.token_ids[some, :last])
        return hidden[rows, positions - 1]


class CachedTeacher:
    """Asks once for each sequence and keeps the answer in ``file``, float32; the file is as private as the sequences.

    Pays where sequences are drawn more than once. Takes 4 * width bytes a structural token.
    """

    def __init__(self, inline: InlineTeacher, *, sequences: list[TokenSequence], width: int, file: Path) -> None:
        self._inline = inline
        counts = [int(sequence.structure.sum()) for sequence in sequences]
        # Shared: written through to the file, so that the system may drop pages from memory.
        kept = torch.from_file(str(file), shared=True, size=sum(counts) * width, dtype=torch.float32)
        parts = torch.split(kept.view(-1, width), counts)
        self._parts = dict(zip(sequences, parts, strict=True))
        self._known: set[TokenSequence] = set()

    def __call__(self, batch: Batch) -> Tensor:
        if not self._known.issuperset(batch.sequences):
            hidden = self._inline(batch)
            counts = [len(self._parts[sequence]) for sequence in batch.sequences]
            for sequence, part in zip(batch.sequences, torch.split(hidden, counts), strict=True):
                self._parts[sequence].copy_(part)
                self._known.add(sequence)
        return torch.cat([self._parts[sequence] for sequence in batch.sequences]).to(batch.token_ids.device)

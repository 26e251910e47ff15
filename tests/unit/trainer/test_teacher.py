"""PrivSA's teacher: what the base model says, asked anew or kept on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from tiny_lora import batch_of

from services.trainer.core.sequences import Batch, TokenSequence
from services.trainer.core.teacher import CachedTeacher, InlineTeacher, hidden_states


class Asked(InlineTeacher):
    """Counts the batches it is asked about."""

    count = 0

    def __call__(self, batch: Batch) -> torch.Tensor:
        self.count += 1
        return super().__call__(batch)


def cached(model: PeftModel, sequences: list[TokenSequence], folder: Path) -> tuple[CachedTeacher, Asked]:
    asked = Asked(model)
    width = model.get_base_model().config.hidden_size
    return CachedTeacher(asked, sequences=sequences, width=width, file=folder / "teacher"), asked


def test_the_teacher_is_the_base_model_before_structural_tokens(
    adapted: PeftModel, sequences: list[TokenSequence]
) -> None:
    found = InlineTeacher(adapted)(batch_of(sequences))
    expected = []
    for sequence in sequences:
        with torch.no_grad(), adapted.disable_adapter():
            hidden = hidden_states(adapted, sequence.token_ids[None])[0]
        expected += [hidden[t - 1] for t in range(len(sequence)) if sequence.structure[t]]
    assert len(expected) > 3
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_what_is_kept_is_what_was_said(adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path) -> None:
    teacher, asked = cached(adapted, sequences, tmp_path)
    lots = [sequences[:3], [sequences[1], sequences[0]], sequences[::-1], sequences]
    for lot in lots:
        torch.testing.assert_close(teacher(batch_of(lot)), InlineTeacher(adapted)(batch_of(lot)), rtol=1e-4, atol=1e-5)
    assert asked.count == 2, "the second and the fourth lot had nothing new"


def test_the_file_has_the_structural_tokens_and_nothing_else(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    teacher, _ = cached(adapted, sequences, tmp_path)
    teacher(batch_of(sequences))
    tokens = sum(int(sequence.structure.sum()) for sequence in sequences)
    kept = (tmp_path / "teacher").read_bytes()
    assert len(kept) == 4 * tokens * adapted.get_base_model().config.hidden_size
    assert any(kept)


def test_training_of_the_adapter_does_not_move_the_teacher(adapted: PeftModel, sequences: list[TokenSequence]) -> None:
    batch = batch_of(sequences)
    before = InlineTeacher(adapted)(batch)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.mul_(5)
    torch.testing.assert_close(InlineTeacher(adapted)(batch), before)

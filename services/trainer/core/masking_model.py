"""A token classification model that marks personal data in code: StarPII (bigcode/starpii) or one with its labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from privcode.errors import InvalidInput
from services.trainer.core.masking_spans import PiiKind, Span

# StarPII's AMBIGUOUS marks what its annotators could not decide; it is left alone.
_KINDS: Final = {**{kind.value: kind for kind in PiiKind}, "USERNAME": PiiKind.USER_NAME}
_LONGEST_CHUNK: Final = 512


class PiiTagger:
    """The model in a folder, on CUDA where there is one. Nothing is fetched from a hub."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForTokenClassification.from_pretrained(folder, local_files_only=True)
        self._model = model.to(self._device).eval()
        # Class -> kind; B- and I- of a kind are one. Adjacent values of one kind are then masked as one.
        self._kinds = {
            int(number): kind
            for number, label in self._model.config.id2label.items()
            if (kind := _KINDS.get(label.upper().removeprefix("B-").removeprefix("I-").replace("-", "_")))
        }
        if not self._tokenizer.is_fast or not self._kinds:
            raise InvalidInput(
                f"the model {folder.name} marks no personal data: it needs a fast tokenizer and labels such as B-EMAIL",
                code="not_a_pii_model", field="model", value=folder.name,
            )  # fmt: skip
        limits = (
            self._tokenizer.model_max_length,
            getattr(self._model.config, "max_position_embeddings", _LONGEST_CHUNK),
        )
        self._chunk = min(_LONGEST_CHUNK, *limits)

    def find(self, text: str) -> Iterator[Span]:
        """Spans in the order of the text. Long texts go through in chunks of which a quarter overlaps: a token's class
        is taken from the chunk in which it has the most tokens on both sides.
        """
        if not text:
            return
        for kind, tokens in groupby(self._classes(text), key=lambda token: token[2]):
            if kind is not None:
                ends = list(tokens)
                start, end = ends[0][0], ends[-1][1]
                value = text[start:end]
                start += len(value) - len(value.lstrip())  # byte-level tokens carry the space before them
                if start < end:
                    yield Span(start, start + len(value.strip()), kind)

    def _classes(self, text: str) -> list[tuple[int, int, PiiKind | None]]:
        """Start, end (characters) and kind of each token of the text."""
        encoded = self._tokenizer(
            text, truncation=True, max_length=self._chunk, stride=self._chunk // 4, return_overflowing_tokens=True,
            return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False,
        )  # fmt: skip
        chosen: dict[tuple[int, int], tuple[int, PiiKind | None]] = {}
        for token_ids, offsets, special in zip(
            encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
        ):
            # One chunk at a time: not every tokenizer has a padding token.
            with torch.inference_mode():
                logits = self._model(input_ids=torch.tensor([token_ids], device=self._device)).logits[0]
            classes = logits.argmax(-1).tolist()
            real = [place for place, is_special in enumerate(special) if not is_special]
            for rank, place in enumerate(real):
                start, end = offsets[place]
                context = min(rank, len(real) - 1 - rank)
                if start < end and context >= chosen.get((start, end), (-1, None))[0]:
                    chosen[start, end] = (context, self._kinds.get(classes[place]))
        return [(start, end, kind) for (start, end), (_, kind) in sorted(chosen.items(), key=lambda item: item[0])]

"""Stage 5, second half (method.md): BERTScore F1 (Zhang et al. 2020) of a description against its problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Final

from bert_score import BERTScorer
from transformers import AutoConfig

_CHUNK: Final = 512


class BertScorer:
    """An encoder, loaded once. ``path_or_id``: a local folder, all of whose layers are used, or a hub id that
    bert_score knows, with the layer that it found best for it."""

    def __init__(self, path_or_id: str) -> None:
        if Path(path_or_id).is_dir():
            layers = AutoConfig.from_pretrained(path_or_id).num_hidden_layers
            # bert_score takes any name with "t5" in it for a T5 model, the names of parent folders included.
            with chdir(path_or_id):
                self._scorer = BERTScorer(model_type=".", num_layers=layers)
        else:
            self._scorer = BERTScorer(model_type=path_or_id)
        config, tokenizer = self._scorer._model.config, self._scorer._tokenizer
        # bert_score truncates to the tokenizer's maximum, which not every tokenizer states. RoBERTa counts positions
        # from its padding id on.
        positions = config.max_position_embeddings - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)

    def f1(
        self, descriptions: Sequence[str], problems: Sequence[str], *, on_done: Callable[[int], None] | None = None
    ) -> list[float]:
        """F1 in [-1, 1] of each description against the problem at its index; texts longer than the encoder's
        context are cut. ``on_done`` is called with the number of pairs done so far. No text may be blank."""
        scores: list[float] = []
        for start in range(0, len(descriptions), _CHUNK):
            part = slice(start, start + _CHUNK)
            _, _, f1 = self._scorer.score(list(descriptions[part]), list(problems[part]))
            scores.extend(f1.tolist())
            if on_done is not None:
                on_done(len(scores))
        return scores

"""Text generation with transformers, for machines without vLLM: left-padded batches of similar length, a key-value
cache, and rows that leave the batch as soon as they end, since on a CPU each row costs time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from lm.generator import Completion, SamplingParams
from lm.models import load_model, load_tokenizer
from lm.prompting import prompt_ids


@dataclass(kw_only=True)
class _Row:
    """One completion in the making. ``uniforms`` (max_new_tokens,) are its own random numbers, drawn up front, so that
    a sample depends neither on its batch nor on the order of the prompts; None if greedy."""

    prompt: int
    sample: int
    ids: list[int]
    uniforms: Tensor | None
    tokens: list[int] = field(default_factory=list)


class TransformersGenerator:
    """A :class:`lm.generator.Generator`. ``batch_size``: completions that are generated side by side."""

    def __init__(self, path_or_id: str | Path, *, batch_size: int) -> None:
        self._model = load_model(path_or_id)
        self._tokenizer = load_tokenizer(path_or_id)
        self._batch_size = batch_size
        ends = self._model.generation_config.eos_token_id
        self._ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self._context = min(self._model.config.max_position_embeddings, self._tokenizer.model_max_length)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        params: SamplingParams,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """See :class:`lm.generator.Generator`. Raises :class:`StageFailed` (``prompt_too_long``) before anything is
        generated if a prompt and ``max_new_tokens`` together exceed the model's context."""
        rows = self._rows(prompts, params=params)
        completions: dict[tuple[int, int], Completion] = {}
        left = Counter(row.prompt for row in rows)
        for start in range(0, len(rows), self._batch_size):
            for row in self._decode(rows[start : start + self._batch_size], params=params):
                completions[row.prompt, row.sample] = self._completion(row, stop=params.stop)
                left[row.prompt] -= 1
                if left[row.prompt] == 0:
                    del left[row.prompt]
                    if on_done is not None:
                        on_done(len(prompts) - len(left))
        return [[completions[prompt, sample] for sample in range(params.n)] for prompt in range(len(prompts))]

    def _rows(self, prompts: Sequence[str], *, params: SamplingParams) -> list[_Row]:
        """The completions to make, longest prompt first; equal lengths in an order that only the texts decide."""
        encoded = prompt_ids(
            prompts, tokenizer=self._tokenizer, context=self._context, max_new_tokens=params.max_new_tokens
        )
        rows, seen = [], Counter[str]()
        for index, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
            for sample in range(params.n):
                identity = f"{params.seed}/{sample}/{seen[prompt]}/{prompt}"
                rows.append(_Row(prompt=index, sample=sample, ids=ids, uniforms=_uniforms(identity, params=params)))
            seen[prompt] += 1
        return sorted(rows, key=lambda row: (-len(row.ids), row.ids))

    @torch.inference_mode()
    def _decode(self, rows: list[_Row], *, params: SamplingParams) -> Iterator[_Row]:
        """Extend the rows token by token; yield each as it ends."""
        logits, cache, mask = self._prefill(rows)
        for step in range(params.max_new_tokens):
            tokens = _choose(logits, rows, step=step, temperature=params.temperature)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                row.tokens.append(token)
            ended = [self._has_ended(row, stop=params.stop) for row in rows]
            yield from (row for row, end in zip(rows, ended, strict=True) if end)
            if any(ended):
                going = torch.tensor([index for index, end in enumerate(ended) if not end], device=mask.device)
                rows = [row for row, end in zip(rows, ended, strict=True) if not end]
                if not rows:
                    return
                cache.batch_select_indices(going)
                mask, tokens = mask[going], tokens[going]
            if step + 1 < params.max_new_tokens:
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
                logits = self._forward(tokens[:, None], cache=cache, mask=mask)
        yield from rows

    def _prefill(self, rows: list[_Row]) -> tuple[Tensor, DynamicCache, Tensor]:
        """Logits (rows, vocabulary) of the first new token, the cache, and the mask (rows, length).

        What all prompts have in common at their beginning (system turn, examples) is computed once, and so is a
        prompt of which several samples are wanted. The longest prompt comes first, the shortest last.
        """
        prompts = list(dict.fromkeys(tuple(row.ids) for row in rows))
        columns = zip(*prompts, strict=False)
        shared = min(sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns)), len(prompts[-1]) - 1)
        cache = DynamicCache(config=self._model.config)
        device = self._model.device
        if shared and len(prompts) > 1:
            start = torch.tensor([prompts[0][:shared]], device=device)
            self._forward(start, cache=cache, mask=torch.ones_like(start))
            cache.batch_repeat_interleave(len(prompts))
        else:
            shared = 0
        rests = [list(prompt[shared:]) for prompt in prompts]
        pads = [len(rests[0]) - len(rest) for rest in rests]
        ids = [[self._tokenizer.pad_token_id] * pad + rest for pad, rest in zip(pads, rests, strict=True)]
        mask = torch.tensor(
            [[1] * shared + [0] * pad + [1] * len(rest) for pad, rest in zip(pads, rests, strict=True)], device=device
        )
        logits = self._forward(torch.tensor(ids, device=device), cache=cache, mask=mask)
        where = {prompt: index for index, prompt in enumerate(prompts)}
        copies = torch.tensor([where[tuple(row.ids)] for row in rows], device=device)
        cache.batch_select_indices(copies)
        return logits[copies], cache, mask[copies]

    def _forward(self, ids: Tensor, *, cache: DynamicCache, mask: Tensor) -> Tensor:
        """Logits (rows, vocabulary) after the last of ``ids`` (rows, new), which go into the cache."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _has_ended(self, row: _Row, *, stop: tuple[str, ...]) -> bool:
        if row.tokens[-1] in self._ends:
            return True
        if not stop:
            return False
        # A token holds at least one byte, so the stop string can't begin before this window.
        window = max(len(text.encode()) for text in stop) + 8
        tail = self._text(row.tokens[-window:])
        return any(text in tail for text in stop)

    def _completion(self, row: _Row, *, stop: tuple[str, ...]) -> Completion:
        text = self._text(row.tokens)
        cut = min((position for mark in stop if (position := text.find(mark)) >= 0), default=None)
        ended = cut is not None or row.tokens[-1] in self._ends
        return Completion(text=text[:cut], tokens=len(row.tokens), finish_reason="stop" if ended else "length")

    def _text(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _uniforms(identity: str, *, params: SamplingParams) -> Tensor | None:
    if params.temperature == 0:
        return None
    seed = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big", signed=True)
    return torch.rand(params.max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _choose(logits: Tensor, rows: list[_Row], *, step: int, temperature: float) -> Tensor:
    """The next token (rows,) of each row: the most likely, or by inversion of the distribution at ``temperature``."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
    uniforms = torch.stack([row.uniforms[step] for row in rows if row.uniforms is not None]).to(logits.device)
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    return tokens.clamp(max=logits.shape[-1] - 1)

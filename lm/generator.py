"""The contract of text generation. Two engines implement it: ``lm.transformers_engine`` and ``lm.vllm_engine``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """``temperature`` 0 is greedy (then ``n`` must be 1). ``stop``: generation ends before the first of these strings,
    which is not part of the text. ``seed`` makes a run repeatable on one engine and machine."""

    max_new_tokens: int
    temperature: float = 0.0
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.n != 1:
            raise ValueError(f"n = {self.n} greedy samples would all be the same")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """``finish_reason`` is ``length`` where max_new_tokens or the model's context ended it."""

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


class Generator(Protocol):
    """Loaded once, then asked for any number of batches."""

    def generate(
        self,
        prompts: Sequence[str],
        *,
        params: SamplingParams,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """``params.n`` completions of each prompt, in the order of the prompts.

        Prompts are complete (chat template applied). ``on_done`` is called with the number of prompts done so far.
        """
        ...

"""Which engine generates."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from lm.generator import Generator
from lm.transformers_engine import TransformersGenerator
from lm.vllm_engine import VllmGenerator

Engine = Literal["auto", "transformers", "vllm"]


def engine_name(engine: Engine) -> Literal["transformers", "vllm"]:
    """The engine that ``auto`` stands for on this machine: vLLM where it is installed, else transformers."""
    if engine == "auto":
        return "vllm" if importlib.util.find_spec("vllm") else "transformers"
    return engine


def make_generator(path_or_id: str | Path, *, engine: Engine, batch_size: int) -> Generator:
    """Load a model for generation; ``batch_size`` completions are made side by side.

    Raises :class:`privcode.errors.StageFailed` (``engine_unavailable``) for ``vllm`` where it can't be imported.
    """
    implementation = VllmGenerator if engine_name(engine) == "vllm" else TransformersGenerator
    return implementation(path_or_id, batch_size=batch_size)

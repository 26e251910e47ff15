"""Asking the models that are evaluated and audited."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from lm.engine import make_generator
from lm.generator import Generator, SamplingParams
from lm.models import load_tokenizer, resolve_model
from lm.prompting import prompt_text
from privcode.stage_io import Stage


def base_model(stage: Stage) -> str:
    """Folder or hub id of the premium model before it was tuned."""
    return resolve_model(stage.spec.premium_model, models_dir=Path(stage.environment.models_dir))


def complete_prompts(problems: Sequence[str], *, model: str, stage: Stage) -> list[str]:
    """The problems in the job's prompt template, as complete prompts for ``model``."""
    tokenizer = load_tokenizer(model)
    return [prompt_text(problem, template=stage.spec.prompt_template, tokenizer=tokenizer) for problem in problems]


def complete(
    model: str, prompts: Sequence[str], *, params: SamplingParams, stage: Stage, turn: int, turns: int
) -> list[list[str]]:
    """``params.n`` completions of each prompt. ``turn``: the model's number among the stage's ``turns``, from 0."""
    torch.set_num_threads(stage.environment.threads)
    generator: Generator = make_generator(
        model, engine=stage.spec.runtime.engine, batch_size=stage.spec.runtime.generate_batch
    )
    completions = generator.generate(
        prompts,
        params=params,
        on_done=lambda done: stage.progress(turn * len(prompts) + done, turns * len(prompts)),
    )
    # Two models side by side may not fit into memory.
    del generator
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [[completion.text for completion in samples] for samples in completions]

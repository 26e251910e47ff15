"""Ordinary LoRA fine-tuning, without any privacy of its own: as private as its data and its base are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from peft import PeftModel

from privcode.errors import StageFailed
from privcode.specs import FinetuneSpec
from services.trainer.core.fused_elementwise import fuse_elementwise
from services.trainer.core.fused_lora import fuse
from services.trainer.core.lora import lora_layers, trainable
from services.trainer.core.privsa import per_example_loss
from services.trainer.core.schedule import learning_rate_at
from services.trainer.core.sequences import TokenSequence, collate, micro_batches


def finetune(
    model: PeftModel,
    sequences: Sequence[TokenSequence],
    *,
    spec: FinetuneSpec,
    micro_batch: int,
    on_step: Callable[[int], None],
) -> None:
    """Take ``spec.steps`` AdamW steps on the mean cross-entropy of ``spec.batch`` examples, with the loss mask of the
    private stage. Changes the adapter in place; ``on_step`` gets the number of steps done.

    Raises :class:`StageFailed` (``no_training_data``) if no sequence has an answer token.
    """
    usable = [sequence for sequence in sequences if bool(sequence.answer.any())]
    if not usable:
        raise StageFailed("no example is left to train on: each prompt fills seq_length", code="no_training_data")
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    draws = _shuffled(len(usable), seed=spec.seed)
    for layer in lora_layers(model):
        fuse(layer, None)
    fuse_elementwise(model)
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        for step in range(spec.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(
                    step, peak=spec.learning_rate, warmup_steps=spec.warmup_steps, steps=spec.steps
                )
            examples = [[usable[next(draws)]] for _ in range(spec.batch)]
            for rows in micro_batches(examples, size=micro_batch):
                batch = collate(rows, device=model.device)
                loss = per_example_loss(model, batch, kl_weight=0.0).sum() / spec.batch
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            on_step(step + 1)


def _shuffled(size: int, *, seed: int) -> Iterator[int]:
    """Indices below ``size``, epoch after epoch, each in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(size, generator=generator).tolist()

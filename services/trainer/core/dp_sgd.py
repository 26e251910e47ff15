"""DP-SGD on a LoRA adapter (Abadi et al. 2016, arXiv 1607.00133) with AdamW as the post-processing of noised sums."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from privcode.errors import StageFailed
from privcode.results import PrivacyPlan
from privcode.specs import SanitizeSpec
from services.trainer.core.checkpoint import Checkpoint, CheckpointFile, StepCounter
from services.trainer.core.engine import ClipCounts, PerExampleEngine
from services.trainer.core.lora import trainable
from services.trainer.core.noise import NoiseSource
from services.trainer.core.privsa import lambda_at, per_example_loss
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.schedule import learning_rate_at
from services.trainer.core.sequences import TokenSequence, micro_batches


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One step, for the private training log: computed from the records without noise. ``loss`` is the mean of
    loss_i over the lot, None for an empty one; ``clipped`` and ``non_finite`` count examples."""

    step: int
    lot: int
    loss: float | None
    clipped: int
    non_finite: int
    kl_weight: float
    learning_rate: float
    seconds: float

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def train(
    model: PeftModel,
    sequences: Sequence[TokenSequence],
    *,
    plan: PrivacyPlan,
    spec: SanitizeSpec,
    engine: PerExampleEngine,
    sampler: PoissonSampler,
    noise: NoiseSource,
    counter: StepCounter,
    checkpoints: CheckpointFile,
    checkpoint_every: int,
    micro_batch: int,
    on_step: Callable[[StepMetrics], None],
) -> None:
    """Take the plan's steps, those before the newest checkpoint excepted. Changes the model's adapter in place.

    ``micro_batch`` and ``checkpoint_every`` change speed and memory only. Raises :class:`StageFailed`
    (``records_changed``) unless there are as many sequences as the plan has records.
    """
    if len(sequences) != plan.records:
        raise StageFailed(f"{len(sequences)} records, the plan has {plan.records}", code="records_changed")
    optimizer = torch.optim.AdamW(engine.parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    first = _restore(model, optimizer, checkpoints.load())
    for step in range(first, plan.steps):
        started = time.monotonic()
        kl_weight = lambda_at(step, spec=spec.privsa)
        learning_rate = learning_rate_at(
            step, peak=spec.learning_rate, warmup_steps=spec.warmup_steps, steps=plan.steps
        )
        lot = [sequences[index] for index in sampler.draw(step)]
        total, counts = 0.0, []
        for batch in micro_batches(lot, size=micro_batch, device=model.device):
            losses = per_example_loss(model, batch, kl_weight=kl_weight)
            counts.append(engine.accumulate(losses, max_grad_norm=plan.max_grad_norm))
            total += float(losses.detach().sum())
        counter.count()
        for parameter, clipped_sum in zip(engine.parameters, engine.take_sum(), strict=True):
            noised = clipped_sum + noise(clipped_sum, std=plan.noise_multiplier * plan.max_grad_norm)
            parameter.grad = noised / plan.expected_batch
        _step(optimizer, learning_rate=learning_rate)
        if (step + 1) % checkpoint_every == 0 or step + 1 == plan.steps:
            checkpoints.save(_state(model, optimizer, step=step + 1))
        on_step(
            StepMetrics(
                step=step + 1,
                lot=len(lot),
                loss=total / len(lot) if lot else None,
                **_total(counts),
                kl_weight=kl_weight,
                learning_rate=learning_rate,
                seconds=time.monotonic() - started,
            )
        )


def _step(optimizer: torch.optim.AdamW, *, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()


def _total(counts: Iterable[ClipCounts]) -> dict[str, int]:
    totals = {"clipped": 0, "non_finite": 0}
    for count in counts:
        totals["clipped"] += count.clipped
        totals["non_finite"] += count.non_finite
    return totals


def _state(model: PeftModel, optimizer: torch.optim.AdamW, *, step: int) -> Checkpoint:
    adapter = {name: parameter.detach() for name, parameter in trainable(model).items()}
    return Checkpoint(step=step, adapter=adapter, optimizer=optimizer.state_dict())


def _restore(model: nn.Module, optimizer: torch.optim.AdamW, checkpoint: Checkpoint | None) -> int:
    """Steps that need not be taken again."""
    if checkpoint is None:
        return 0
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(checkpoint.adapter[name])
    optimizer.load_state_dict(checkpoint.optimizer)
    return checkpoint.step

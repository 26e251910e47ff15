"""DP-SGD on a LoRA adapter (Abadi et al. 2016, arXiv 1607.00133) with AdamW as the post-processing of noised sums."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from privcode.errors import StageFailed
from privcode.results import PrivacyPlan
from privcode.specs import SanitizeSpec
from services.trainer.core.checkpoint import Checkpoint, CheckpointFile, StepCounter
from services.trainer.core.engine import ClipCounts, ClippingRule, PerExampleEngine
from services.trainer.core.lora import trainable
from services.trainer.core.noise import NoiseSource
from services.trainer.core.privsa import lambda_at, per_example_loss
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.schedule import learning_rate_at
from services.trainer.core.sequences import TokenSequence, collate, micro_batches


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One step, for the private training log: computed from the records without noise. ``loss`` is the mean
    of the units' losses over the lot, None for an empty one; ``lot``, ``clipped`` and ``non_finite`` count units."""

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
    units: Sequence[Sequence[TokenSequence]],
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

    ``units``: the records of each privacy unit, one sequence a record. ``micro_batch`` and ``checkpoint_every`` change
    speed and memory only. Raises :class:`StageFailed` (``records_changed``) unless there are as many units as the plan
    has, and none with more records than it allows.
    """
    largest = max(map(len, units), default=0)
    if len(units) != plan.units or largest > plan.max_records_per_unit:
        raise StageFailed(
            f"{len(units)} units of up to {largest} records, the plan has {plan.units} of up to "
            f"{plan.max_records_per_unit}",
            code="records_changed",
        )
    rule = ClippingRule(max_grad_norm=plan.max_grad_norm, style=plan.clipping)
    optimizer = torch.optim.AdamW(engine.parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    first = _restore(model, optimizer, checkpoints.load())
    for step in range(first, plan.steps):
        started = time.monotonic()
        kl_weight = lambda_at(step, spec=spec.privsa)
        learning_rate = learning_rate_at(
            step, peak=spec.learning_rate, warmup_steps=spec.warmup_steps, steps=plan.steps
        )
        lot = [units[index] for index in sampler.draw(step)]
        total, counts = 0.0, ClipCounts()
        waiting = deque(micro_batches(lot, size=micro_batch))
        while waiting:
            rows = waiting.popleft()
            batch = collate(rows, device=model.device)
            losses = per_example_loss(model, batch, kl_weight=kl_weight) * batch.weights
            unfinished = bool(waiting) and waiting[0][0].unit == rows[-1].unit
            counts += engine.accumulate(losses, rule=rule, units=batch.units, unfinished=unfinished)
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
                clipped=counts.clipped,
                non_finite=counts.non_finite,
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

"""DP-SGD on a LoRA adapter (Abadi et al. 2016, arXiv 1607.00133) with AdamW as the post-processing of noised sums."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final

import torch
from peft import PeftModel
from torch import Tensor, nn

from privcode.errors import StageFailed
from privcode.results import PrivacyPlan
from privcode.specs import SanitizeSpec
from services.trainer.core.checkpoint import Checkpoint, CheckpointFile, StepCounter
from services.trainer.core.distributed import Alone, Group, require_equal, share
from services.trainer.core.engine import ClipCounts, ClippingRule, PerExampleEngine
from services.trainer.core.lora import trainable
from services.trainer.core.micro_batching import MicroBatches
from services.trainer.core.noise import NoiseSource
from services.trainer.core.privsa import lambda_at, per_example_loss
from services.trainer.core.sampler import Sampler
from services.trainer.core.sampler_check import LotMonitor
from services.trainer.core.schedule import learning_rate_at
from services.trainer.core.sequences import Batch, TokenSequence, collate
from services.trainer.core.teacher import Teacher


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


@dataclass(frozen=True, kw_only=True)
class _Tally:
    """What is told of a lot, or of a part of it."""

    lot: int = 0
    loss: float = 0.0
    counts: ClipCounts = field(default_factory=ClipCounts)

    def __add__(self, other: _Tally) -> _Tally:
        return _Tally(lot=self.lot + other.lot, loss=self.loss + other.loss, counts=self.counts + other.counts)

    def over(self, group: Group, *, device: torch.device) -> _Tally:
        """The sum over all ranks, on rank 0."""
        values = [self.lot, self.loss, self.counts.clipped, self.counts.non_finite]
        (total,) = group.reduce([torch.tensor(values, dtype=torch.float64, device=device)])
        lot, loss, clipped, non_finite = total.tolist()
        return _Tally(lot=int(lot), loss=loss, counts=ClipCounts(clipped=int(clipped), non_finite=int(non_finite)))

    def metrics(self, *, step: int, kl_weight: float, learning_rate: float, seconds: float) -> StepMetrics:
        return StepMetrics(
            step=step,
            lot=self.lot,
            loss=self.loss / self.lot if self.lot else None,
            clipped=self.counts.clipped,
            non_finite=self.counts.non_finite,
            kl_weight=kl_weight,
            learning_rate=learning_rate,
            seconds=seconds,
        )


_ALONE: Final = Alone()


def train(
    model: PeftModel,
    units: Sequence[Sequence[TokenSequence]],
    *,
    plan: PrivacyPlan,
    spec: SanitizeSpec,
    engine: PerExampleEngine,
    sampler: Sampler,
    noise: NoiseSource,
    counter: StepCounter,
    checkpoints: CheckpointFile,
    checkpoint_every: int,
    micro_batch: int,
    on_step: Callable[[StepMetrics], None],
    teacher: Teacher | None = None,
    group: Group = _ALONE,
) -> None:
    """Take the plan's steps, those before the newest checkpoint excepted. Changes the model's adapter in place.

    ``units``: the records of each privacy unit, one sequence a record. ``micro_batch``, ``checkpoint_every``,
    ``teacher`` and ``group`` change speed and memory only; ``counter``, ``noise``, ``checkpoints`` and ``on_step`` are
    used on rank 0. Raises :class:`StageFailed` (``records_changed``) unless there are as many units as the plan has,
    and none with more records than it allows; ``out_of_memory`` if a single row does not fit;
    ``checkpoint_unusable``; ``ranks_diverged``; ``sampler_not_poisson``.
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
    first = _restore(model, optimizer, checkpoints=checkpoints, counter=counter, group=group)
    monitor = LotMonitor(units=plan.units, sample_rate=plan.sample_rate)
    waiting = MicroBatches(size=micro_batch, seq_length=spec.seq_length)
    for step in range(first, plan.steps):
        started = time.monotonic()
        kl_weight = lambda_at(step, spec=spec.privsa)
        losses = partial(per_example_loss, model, kl_weight=kl_weight, teacher=teacher)
        learning_rate = learning_rate_at(
            step, peak=spec.learning_rate, warmup_steps=spec.warmup_steps, steps=plan.steps
        )
        drawn = sampler.draw(step)
        monitor.observe(drawn)
        lot = [units[index] for index in share(drawn, group=group)]
        tally = _Tally(lot=len(lot))
        waiting.cut(lot)
        while waiting:
            with waiting.next() as (rows, unfinished):
                tally += _add_gradients(
                    engine, collate(rows, device=model.device), losses=losses, rule=rule, unfinished=unfinished
                )
        sums = group.reduce(engine.take_sum())
        if group.rank == 0:
            counter.count()
            sums = [total + noise(total, std=plan.noise_multiplier * plan.max_grad_norm) for total in sums]
        for parameter, noised in zip(engine.parameters, group.broadcast(sums), strict=True):
            parameter.grad = noised / plan.expected_batch
        _step(optimizer, learning_rate=learning_rate)
        if (step + 1) % checkpoint_every == 0 or step + 1 == plan.steps:
            _save(model, optimizer, step=step + 1, checkpoints=checkpoints, counter=counter, group=group)
        tally = tally.over(group, device=model.device)
        if group.rank == 0:
            on_step(
                tally.metrics(
                    step=step + 1,
                    kl_weight=kl_weight,
                    learning_rate=learning_rate,
                    seconds=time.monotonic() - started,
                )
            )


def _add_gradients(
    engine: PerExampleEngine,
    batch: Batch,
    *,
    losses: Callable[[Batch], Tensor],
    rule: ClippingRule,
    unfinished: bool,
) -> _Tally:
    """Per-example gradients of some rows, clipped, into the engine's sum.

    The sum changes last: what fails before is tried again, and no unit may get into the sum twice.
    """
    weighted = losses(batch) * batch.weights
    loss = float(weighted.detach().sum())
    counts = engine.accumulate(weighted, rule=rule, units=batch.units, unfinished=unfinished)
    return _Tally(loss=loss, counts=counts)


def _step(optimizer: torch.optim.AdamW, *, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()


def _save(
    model: PeftModel,
    optimizer: torch.optim.AdamW,
    *,
    step: int,
    checkpoints: CheckpointFile,
    counter: StepCounter,
    group: Group,
) -> None:
    adapter = {name: parameter.detach() for name, parameter in trainable(model).items()}
    require_equal(adapter.values(), group=group)
    if group.rank == 0:
        checkpoints.save(
            Checkpoint(step=step, steps_taken=counter.taken, adapter=adapter, optimizer=optimizer.state_dict())
        )


def _restore(
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    *,
    checkpoints: CheckpointFile,
    counter: StepCounter,
    group: Group,
) -> int:
    """Give all ranks the state of rank 0's checkpoint. Returns how many steps need not be taken again."""
    checkpoint = group.broadcast_object(checkpoints.load() if group.rank == 0 else None)
    if checkpoint is not None:
        if group.rank == 0 and counter.taken < checkpoint.steps_taken:
            raise StageFailed(
                f"the checkpoint was made after {checkpoint.steps_taken} steps, but {counter.taken} are counted",
                code="checkpoint_unusable",
            )
        with torch.no_grad():
            for name, parameter in trainable(model).items():
                parameter.copy_(checkpoint.adapter[name])
        optimizer.load_state_dict(checkpoint.optimizer)
    require_equal(trainable(model).values(), group=group)
    return checkpoint.step if checkpoint else 0

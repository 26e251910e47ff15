"""The guarantee, measured: whoever sees every noised gradient can't tell better than epsilon allows whether a record
was there, and can as soon as the noise, the clipping or the scale is wrong.

The real training loop runs many times with and without a canary. The other records have no answer and so no
gradient, the learning rate is almost zero, and the attacker knows the canary's gradient: nothing hides the canary but
the mechanism itself, so that what is measured comes close to what the accountant computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from scipy import stats
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM

from privcode.accounting import epsilon_pld, make_plan
from privcode.results import PrivacyPlan
from privcode.specs import LoraSpec, PrivacySpec, PrivSASpec, SanitizeSpec
from services.trainer.core.checkpoint import CheckpointFile, StepCounter
from services.trainer.core.dp_sgd import train
from services.trainer.core.engine import ClipCounts, ClippingRule, PerExampleEngine
from services.trainer.core.lora import add_adapter
from services.trainer.core.native_engine import NativeEngine
from services.trainer.core.noise import NoiseSource, secret_gaussian
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.sequences import TokenSequence

UNITS, BATCH, STEPS, DELTA = 16, 8, 2, 0.01
SPEC = SanitizeSpec(
    model="local/tiny", lora=LoraSpec(rank=1, alpha=1.0, target_modules=("v_proj",)), learning_rate=1e-9,
    weight_decay=0.0, seq_length=16, privsa=PrivSASpec(schedule="off"),
)  # fmt: skip


def sequence(*, answer: bool) -> TokenSequence:
    tokens = torch.tensor([1, 2, 3, 4])
    is_answer = torch.tensor([False, False, answer, answer])
    return TokenSequence(token_ids=tokens, answer=is_answer, structure=torch.zeros_like(is_answer))


CANARY, OTHER = sequence(answer=True), sequence(answer=False)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Trains the same small model again and again. ``scores``: one number a run, the larger the likelier the canary."""

    model: PeftModel
    engine: PerExampleEngine
    plan: PrivacyPlan
    folder: Path

    def scores(self, *, runs: int, canary: bool, noise: NoiseSource, direction: Tensor) -> NDArray[np.float64]:
        units = [[OTHER]] * (UNITS - 1) + [[CANARY] if canary else [OTHER]]
        return np.array([float(self._run(units, noise=noise) @ direction) for _ in range(runs)])

    def canary_direction(self) -> Tensor:
        """The canary's gradient, as a vector of length 1: what the optimizer gets without noise and other units."""
        plan = self.plan.model_copy(update={"sample_rate": 1.0, "steps": 1})
        gradient = replace(self, plan=plan)._run([[OTHER]] * (UNITS - 1) + [[CANARY]], noise=no_noise)
        return gradient / gradient.norm()

    def _run(self, units: list[list[TokenSequence]], *, noise: NoiseSource) -> Tensor:
        """Sum over the steps of all that the optimizer gets."""
        with TemporaryDirectory(dir=self.folder) as kept, seen_by_the_optimizer() as gradients:
            train(
                self.model, units, plan=self.plan, spec=SPEC, engine=self.engine, noise=noise,
                sampler=PoissonSampler(units=UNITS, sample_rate=self.plan.sample_rate, seed=None),
                counter=StepCounter(Path(kept)), checkpoints=CheckpointFile(Path(kept), run="run"),
                checkpoint_every=STEPS, micro_batch=UNITS, on_step=lambda _: None,
            )  # fmt: skip
        assert len(gradients) == self.plan.steps
        return torch.stack(gradients).sum(0)


@contextmanager
def seen_by_the_optimizer() -> Iterator[list[Tensor]]:
    gradients: list[Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield gradients
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    # Each step is made durable: in memory that costs nothing.
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield make_bench(Path(folder))


def make_bench(folder: Path) -> Bench:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, max_position_embeddings=16, initializer_range=1.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = add_adapter(LlamaForCausalLM(config).eval(), SPEC.lora, seed=0)
    privacy = PrivacySpec(target_epsilon=1.0, target_delta=DELTA, expected_batch=BATCH, steps=STEPS, max_grad_norm=0.01)
    return Bench(model=model, engine=NativeEngine(model), plan=make_plan(privacy, records=UNITS), folder=folder)


def no_noise(like: Tensor, *, std: float) -> Tensor:  # noqa: ARG001
    return torch.zeros_like(like)


def scaled(factor: float) -> NoiseSource:
    """The real noise, ``factor`` times as large as it was asked for."""

    def noise(like: Tensor, *, std: float) -> Tensor:
        return secret_gaussian(like, std=factor * std)

    return noise


class Unclipped:
    """The real engine, told a far too large ``max_grad_norm``."""

    def __init__(self, engine: PerExampleEngine) -> None:
        self._engine = engine

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self._engine.parameters

    def accumulate(
        self, losses: Tensor, *, rule: ClippingRule, units: Tensor | None = None, unfinished: bool = False
    ) -> ClipCounts:
        return self._engine.accumulate(
            losses, rule=replace(rule, max_grad_norm=1e6), units=units, unfinished=unfinished
        )

    def take_sum(self) -> list[Tensor]:
        return self._engine.take_sum()


def lower_bound(without: NDArray[np.float64], with_canary: NDArray[np.float64]) -> float:
    """Epsilon that the scores prove at 95 %: log((TPR - delta) / FPR) for the guess "above a threshold: it was there".

    The threshold is the best for the first half; the rates are Clopper-Pearson bounds on the second half, 97.5 % each.
    """
    half = len(without) // 2

    def bound(threshold: float, off: NDArray[np.float64], on: NDArray[np.float64]) -> float:
        true, false = int((on > threshold).sum()), int((off > threshold).sum())
        low = float(stats.beta.ppf(0.025, true, len(on) - true + 1)) if true else 0.0
        high = float(stats.beta.ppf(0.975, false + 1, len(off) - false)) if false < len(off) else 1.0
        return math.log(max(low - DELTA, 1e-9) / high)

    candidates = np.quantile(np.concatenate([without[:half], with_canary[:half]]), np.linspace(0.02, 0.98, 49))
    best = max(candidates, key=lambda threshold: bound(threshold, without[:half], with_canary[:half]))
    return max(0.0, bound(best, without[half:], with_canary[half:]))


def measured(bench: Bench, *, noise: NoiseSource, runs: int) -> float:
    direction = bench.canary_direction()
    without, with_canary = (
        bench.scores(runs=runs, canary=canary, noise=noise, direction=direction) for canary in (False, True)
    )
    return lower_bound(without, with_canary)


def test_no_more_than_epsilon_can_be_told_from_a_run(bench: Bench) -> None:
    claimed = epsilon_pld([bench.plan.mechanism], target_delta=DELTA)
    proven = measured(bench, noise=secret_gaussian, runs=800)
    print(f"\nepsilon: claimed {claimed:.3f}, at least {proven:.3f} by 2 x 800 runs (95 %)")
    assert proven < claimed <= 1


def test_without_noise_the_canary_is_told(bench: Bench) -> None:
    proven = measured(bench, noise=no_noise, runs=100)
    print(f"\nepsilon: at least {proven:.3f} by 2 x 100 runs without noise (95 %)")
    assert proven > bench.plan.target_epsilon


def test_noise_divided_by_the_batch_twice_is_found(bench: Bench) -> None:
    proven = measured(bench, noise=scaled(1 / BATCH), runs=150)
    print(f"\nepsilon: at least {proven:.3f} by 2 x 150 runs with an eighth of the noise (95 %)")
    assert proven > bench.plan.target_epsilon


def test_gradients_that_are_not_clipped_are_found(bench: Bench) -> None:
    proven = measured(replace(bench, engine=Unclipped(bench.engine)), noise=secret_gaussian, runs=150)
    print(f"\nepsilon: at least {proven:.3f} by 2 x 150 runs without clipping (95 %)")
    assert proven > bench.plan.target_epsilon

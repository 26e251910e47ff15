"""The private loop: what a step does, what is counted, what survives a crash."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from privcode.checkpoints import Generations
from privcode.errors import StageFailed
from privcode.results import PrivacyPlan
from privcode.specs import LoraSpec, PrivSASpec, SanitizeSpec
from services.trainer.core.checkpoint import CheckpointFile, StepCounter
from services.trainer.core.dp_sgd import StepMetrics, train
from services.trainer.core.lora import trainable
from services.trainer.core.native_engine import NativeEngine
from services.trainer.core.noise import NoiseSource, secret_gaussian
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.schedule import learning_rate_at
from services.trainer.core.sequences import TokenSequence

SPEC = SanitizeSpec(
    model="local/tiny", lora=LoraSpec(rank=2, alpha=4.0, target_modules=("q_proj",)), learning_rate=1e-2,
    weight_decay=0.0, seq_length=160, privsa=PrivSASpec(lambda_max=1.0, lambda_min=0.0),
)  # fmt: skip


def no_noise(like: Tensor, *, std: float) -> Tensor:
    assert std > 0
    return torch.zeros_like(like)


def plan_of(sequences: list[TokenSequence], **values: Any) -> PrivacyPlan:
    defaults: dict[str, Any] = {
        "target_epsilon": 4.0, "target_delta": 1e-5, "records": len(sequences), "unit": "record",
        "units": len(sequences), "max_records_per_unit": 1, "clipping": "flat", "expected_batch": 3, "sample_rate": 0.6,
        "steps": 4, "noise_multiplier": 0.5, "max_grad_norm": 0.7,
    }  # fmt: skip
    return PrivacyPlan.model_validate({**defaults, **values})


def run(
    model: PeftModel, sequences: list[TokenSequence], folder: Path, *, plan: PrivacyPlan | None = None,
    noise: NoiseSource = no_noise, seed: int | None = 7, micro_batch: int = 2, checkpoint_every: int = 100,
    spec: SanitizeSpec = SPEC, run: str = "run", reserved: int | None = None,
) -> list[StepMetrics]:  # fmt: skip
    plan = plan or plan_of(sequences)
    steps: list[StepMetrics] = []
    train(
        model, [[sequence] for sequence in sequences], plan=plan, spec=spec, engine=NativeEngine(model),
        sampler=PoissonSampler(units=plan.units, sample_rate=plan.sample_rate, seed=seed), noise=noise,
        counter=StepCounter(folder, limit=reserved), checkpoints=CheckpointFile(folder, run=run),
        checkpoint_every=checkpoint_every, micro_batch=micro_batch, on_step=steps.append,
    )  # fmt: skip
    return steps


def checkpointed(folder: Path) -> int:
    newest = Generations(folder).newest()
    return newest.step if newest else 0


def adapter(model: PeftModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainable(model).values()]).clone()


def test_the_first_step_changes_the_adapter(adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path) -> None:
    before = adapter(adapted)
    (step,) = run(adapted, sequences, tmp_path, plan=plan_of(sequences, steps=1, sample_rate=1.0))
    assert step.lot == len(sequences)
    assert float((adapter(adapted) - before).abs().max()) > 1e-4


def test_a_step_is_the_noised_sum_over_the_expected_batch(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stds, given, summed = [], [], []

    def noise(like: Tensor, *, std: float) -> Tensor:
        stds.append(std)
        summed.append(like.clone())
        return torch.full_like(like, 0.25)

    take = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any) -> None:
        given.extend(parameter.grad.clone() for group in self.param_groups for parameter in group["params"])
        take(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(adapted, sequences, tmp_path, plan=plan_of(sequences, steps=1), noise=noise)
    assert set(stds) == {0.5 * 0.7}  # noise_multiplier * max_grad_norm
    assert len(given) == len(summed) > 0
    for gradient, total in zip(given, summed, strict=True):
        torch.testing.assert_close(gradient, (total + 0.25) / 3)  # the expected batch, not the lot's size


def test_an_empty_lot_takes_a_noised_step(adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path) -> None:
    before = adapter(adapted)
    plan = plan_of(sequences, steps=1, sample_rate=1e-12)
    (step,) = run(adapted, sequences, tmp_path, plan=plan, noise=secret_gaussian)
    assert (step.lot, step.loss) == (0, None)
    assert StepCounter(tmp_path).taken == 1
    assert bool((adapter(adapted) != before).all())


def test_one_data_seed_gives_the_same_lots_and_other_noise(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    lots, ends = [], []
    for name in ("one", "other"):
        model = copy.deepcopy(adapted)
        (tmp_path / name).mkdir()
        steps = run(model, sequences, tmp_path / name, noise=secret_gaussian)
        lots.append([(step.lot, steps[0].loss) for step in steps])
        ends.append(adapter(model))
    assert lots[0] == lots[1]
    assert bool((ends[0] != ends[1]).all())


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_the_micro_batch_changes_nothing(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path, micro_batch: int
) -> None:
    other = copy.deepcopy(adapted)
    (tmp_path / "other").mkdir()
    # Plain steps down the gradient: Adam would divide float error near zero by itself.
    run(adapted, sequences, tmp_path, plan=plan_of(sequences, steps=1), micro_batch=2)
    run(other, sequences, tmp_path / "other", plan=plan_of(sequences, steps=1), micro_batch=micro_batch)
    close = torch.isclose(adapter(adapted), adapter(other), rtol=1e-3, atol=1e-5)
    assert float(close.double().mean()) > 0.99


class Crash(Exception):
    pass


def crashing_after(steps: int, *, parameters: int) -> NoiseSource:
    """Noise that fails where the first noise of step ``steps + 1`` would be drawn."""
    calls = 0

    def noise(like: Tensor, *, std: float) -> Tensor:
        nonlocal calls
        if calls == steps * parameters:
            raise Crash
        calls += 1
        return no_noise(like, std=std)

    return noise


def test_a_resumed_run_ends_where_an_unbroken_one_does_and_counts_what_was_lost(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    plan = plan_of(sequences, steps=5)
    fresh, unbroken = copy.deepcopy(adapted), copy.deepcopy(adapted)
    (tmp_path / "unbroken").mkdir()
    run(unbroken, sequences, tmp_path / "unbroken", plan=plan)

    noise = crashing_after(3, parameters=len(trainable(adapted)))
    with pytest.raises(Crash):
        run(adapted, sequences, tmp_path, plan=plan, noise=noise, checkpoint_every=2)
    # Step 4 was counted although its noise never came: before, not after.
    assert (tmp_path / "steps_taken").read_text() == "4"
    assert checkpointed(tmp_path) == 2

    steps = run(fresh, sequences, tmp_path, plan=plan, checkpoint_every=2)
    assert [step.step for step in steps] == [3, 4, 5]
    assert StepCounter(tmp_path).taken == 7  # 4 in the lost attempt, 3 in this
    assert checkpointed(tmp_path) == 5
    assert torch.equal(adapter(fresh), adapter(unbroken))

    before = adapter(fresh)
    assert run(fresh, sequences, tmp_path, plan=plan) == []
    assert StepCounter(tmp_path).taken == 7
    assert torch.equal(adapter(fresh), before)


def test_a_checkpoint_of_another_run_is_refused(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    run(adapted, sequences, tmp_path)
    taken = StepCounter(tmp_path).taken
    with pytest.raises(StageFailed) as other:
        run(copy.deepcopy(adapted), sequences, tmp_path, run="another")
    assert other.value.code == "checkpoint_unusable"
    assert StepCounter(tmp_path).taken == taken


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    plan = plan_of(sequences, steps=5)
    fresh, broken, unbroken = copy.deepcopy(adapted), copy.deepcopy(adapted), copy.deepcopy(adapted)
    (tmp_path / "unbroken").mkdir()
    run(unbroken, sequences, tmp_path / "unbroken", plan=plan)
    run(adapted, sequences, tmp_path, plan=plan, checkpoint_every=2)
    four, five = sorted(tmp_path.glob("checkpoint-*.pt"))  # after 2 steps there was another
    five.write_bytes(five.read_bytes()[:-200])
    assert checkpointed(tmp_path) == 4
    steps = run(fresh, sequences, tmp_path, plan=plan)
    assert [step.step for step in steps] == [5]
    assert StepCounter(tmp_path).taken == 6
    assert torch.equal(adapter(fresh), adapter(unbroken))

    for path in tmp_path.glob("checkpoint-*.pt"):
        path.write_bytes(b"")
    with pytest.raises(StageFailed) as refused:
        run(broken, sequences, tmp_path, plan=plan)
    assert refused.value.code == "checkpoint_unusable"
    assert StepCounter(tmp_path).taken == 6
    assert not four.stat().st_size


def test_no_step_is_taken_beyond_the_reservation(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    noised: list[Tensor] = []

    def noise(like: Tensor, *, std: float) -> Tensor:
        noised.append(like)
        return no_noise(like, std=std)

    with pytest.raises(StageFailed) as refused:
        run(adapted, sequences, tmp_path, noise=noise, reserved=3)
    assert refused.value.code == "reservation_exhausted"
    assert StepCounter(tmp_path).taken == 3
    assert len(noised) == 3 * len(trainable(adapted))


def test_a_checkpoint_whose_steps_are_not_counted_is_refused(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    run(adapted, sequences, tmp_path, checkpoint_every=2)
    (tmp_path / "steps_taken").unlink()
    with pytest.raises(StageFailed) as refused:
        run(adapted, sequences, tmp_path)
    assert refused.value.code == "checkpoint_unusable"


def test_records_that_are_not_the_plans_are_refused_before_any_step(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    with pytest.raises(StageFailed) as refused:
        run(adapted, sequences[:-1], tmp_path, plan=plan_of(sequences))
    assert refused.value.code == "records_changed"
    assert not list(tmp_path.iterdir())


def test_learning_rate() -> None:
    rates = [learning_rate_at(step, peak=2.0, warmup_steps=4, steps=12) for step in range(12)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] > 0
    assert learning_rate_at(0, peak=2.0, warmup_steps=0, steps=1) == 2.0
    assert learning_rate_at(1, peak=2.0, warmup_steps=2, steps=2) == 2.0

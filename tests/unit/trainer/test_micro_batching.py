"""Memory that runs out in a micro-batch: smaller ones, the same sum."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from peft import PeftModel
from test_dp_sgd import SPEC, no_noise, plan_of
from torch import Tensor, nn

from privcode.errors import StageFailed
from privcode.results import PrivacyPlan
from services.trainer.core.checkpoint import CheckpointFile, StepCounter
from services.trainer.core.dp_sgd import StepMetrics, train
from services.trainer.core.engine import ClipCounts, ClippingRule
from services.trainer.core.native_engine import NativeEngine
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.sequences import TokenSequence

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
OUT_OF_MEMORY: tuple[tuple[type[Exception], str], ...] = (
    (torch.OutOfMemoryError, "CUDA out of memory"), (RuntimeError, ALLOCATOR), (MemoryError, "")
)  # fmt: skip


class Scarce:
    """The native engine on a machine that has memory for ``rows`` rows; it notices before or in the backward pass."""

    def __init__(self, model: PeftModel, *, rows: int, error: tuple[type[Exception], str]) -> None:
        self._engine = NativeEngine(model)
        self._rows = rows
        self._error = error
        self._failed: weakref.ref[Tensor] | None = None
        self._failing_backward = False
        self.sizes: list[int] = []
        # Its output's gradient comes when the layers after it have theirs.
        first: nn.Module = model.get_base_model().model.layers[0]
        first.register_forward_hook(lambda _module, _inputs, output: self._watch(output))

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self._engine.parameters

    def accumulate(
        self, losses: Tensor, *, rule: ClippingRule, units: Tensor | None = None, unfinished: bool = False
    ) -> ClipCounts:
        self.sizes.append(len(losses))
        assert self._failed is None or self._failed() is None, "what the failed micro-batch had is still there"
        if len(losses) > self._rows:
            self._failed = weakref.ref(losses)
            if len(self.sizes) % 2 == 0:
                self._raise()
            self._failing_backward = True
        return self._engine.accumulate(losses, rule=rule, units=units, unfinished=unfinished)

    def take_sum(self) -> list[Tensor]:
        return self._engine.take_sum()

    def _watch(self, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _: self._raise() if self._failing_backward else None)

    def _raise(self) -> NoReturn:
        self._failing_backward = False
        kind, message = self._error
        raise kind(message)


def sums(
    model: PeftModel, units: list[list[TokenSequence]], folder: Path, *, plan: PrivacyPlan, micro_batch: int,
    engine: Scarce | NativeEngine,
) -> tuple[list[Tensor], list[StepMetrics]]:  # fmt: skip
    """What comes to the noise, and what is told of each step."""
    seen: list[Tensor] = []
    steps: list[StepMetrics] = []

    def noise(like: Tensor, *, std: float) -> Tensor:
        seen.append(like.clone())
        return no_noise(like, std=std)

    folder.mkdir()
    train(
        model, units, plan=plan, spec=SPEC, engine=engine,
        sampler=PoissonSampler(units=plan.units, sample_rate=plan.sample_rate, seed=7), noise=noise,
        counter=StepCounter(folder), checkpoints=CheckpointFile(folder, run="run"), checkpoint_every=100,
        micro_batch=micro_batch, on_step=steps.append,
    )  # fmt: skip
    return seen, steps


@pytest.mark.parametrize(("micro_batch", "rows", "error"), zip([4, 7, 8], [1, 2, 3], OUT_OF_MEMORY, strict=True))
def test_the_sum_is_that_of_an_unbroken_run(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path, micro_batch: int, rows: int,
    error: tuple[type[Exception], str],
) -> None:  # fmt: skip
    # Units of several records, so that a halved micro-batch may end within one.
    units = [sequences[:3], [sequences[3]], [sequences[4], sequences[0]], [sequences[1]], sequences[2:5]]
    plan = plan_of(
        sequences, steps=2, sample_rate=0.9, max_grad_norm=0.05, unit="unit_id", records=10, max_records_per_unit=3
    )
    other = copy.deepcopy(adapted)
    expected, told = sums(adapted, units, tmp_path / "a", plan=plan, micro_batch=1, engine=NativeEngine(adapted))
    engine = Scarce(other, rows=rows, error=error)
    found, told_too = sums(other, units, tmp_path / "b", plan=plan, micro_batch=micro_batch, engine=engine)
    one = len(found) // 2  # the second step comes after AdamW, which divides float error near zero by itself
    for left, right in zip(expected[:one], found[:one], strict=True):
        torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-7)
    assert [(step.lot, step.clipped) for step in told] == [(step.lot, step.clipped) for step in told_too]
    assert [step.loss for step in told] == pytest.approx([step.loss for step in told_too], rel=1e-2)
    failed = [size for size in engine.sizes if size > rows]
    assert 0 < len(failed) <= 3, "the smaller size is remembered over the steps"
    assert StepCounter(tmp_path / "b").taken == 2


def test_one_row_that_does_not_fit_ends_the_run(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    engine = Scarce(adapted, rows=0, error=OUT_OF_MEMORY[0])
    units, plan = [[sequence] for sequence in sequences], plan_of(sequences, sample_rate=1.0)
    with pytest.raises(StageFailed, match=r"runtime\.micro_batch 1 and seq_length 160") as failed:
        sums(adapted, units, tmp_path / "a", plan=plan, micro_batch=4, engine=engine)
    assert failed.value.code == "out_of_memory"
    assert engine.sizes == [4, 2, 1]
    assert StepCounter(tmp_path / "a").taken == 0


@pytest.mark.parametrize("error", [(RuntimeError, "CUDA error: device-side assert triggered"), (ValueError, "x")])
def test_other_errors_are_not_taken_for_it(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path, error: tuple[type[Exception], str]
) -> None:
    engine = Scarce(adapted, rows=1, error=error)
    units, plan = [[sequence] for sequence in sequences], plan_of(sequences, sample_rate=1.0)
    with pytest.raises(error[0]):
        sums(adapted, units, tmp_path / "a", plan=plan, micro_batch=4, engine=engine)
    assert engine.sizes == [4]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux'")
def test_a_real_limit_of_memory(tmp_path: Path) -> None:
    here = Path(__file__).parent
    output = subprocess.run(
        [sys.executable, "-W", "ignore", str(here / "scarce_worker.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{Path.cwd()}:{here}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    told = json.loads(output)
    assert sum(told["sizes"]) == 8
    assert max(told["sizes"]) < 8
    assert told["error"] < 1e-5

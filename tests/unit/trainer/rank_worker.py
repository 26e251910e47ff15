"""One rank of a run on the tiny model: ``python rank_worker.py MODEL FOLDER RANK WORLD``; see ``test_ranks.py``.

Writes what it saw to ``FOLDER/seen-RANK.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lm.models import load_tokenizer
from privcode.results import PrivacyPlan
from privcode.specs import LoraSpec, PrivSASpec, SanitizeSpec
from services.trainer.core.checkpoint import CheckpointFile, StepCounter
from services.trainer.core.distributed import Alone, Group, ProcessGroup
from services.trainer.core.dp_sgd import train
from services.trainer.core.loading import load_base
from services.trainer.core.lora import add_adapter, trainable
from services.trainer.core.native_engine import NativeEngine
from services.trainer.core.noise import NoiseSource, secret_gaussian
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.sequences import make_sequence

LORA = LoraSpec(rank=8, alpha=4.0, target_modules=("q_proj", "v_proj", "down_proj"))
SPEC = SanitizeSpec(
    model="local/tiny", lora=LORA, learning_rate=1e-2, weight_decay=0.0, seq_length=120,
    privsa=PrivSASpec(lambda_max=1.0, lambda_min=0.0),
)  # fmt: skip
NOISE, NORM, BATCH = 0.8, 0.25, 8
UNITS = 11


def plan(*, steps: int, sample_rate: float) -> PrivacyPlan:
    return PrivacyPlan(
        target_epsilon=4.0, target_delta=1e-5, records=UNITS, unit="record", units=UNITS, max_records_per_unit=1,
        clipping="flat", expected_batch=BATCH, sample_rate=sample_rate, steps=steps, noise_multiplier=NOISE,
        max_grad_norm=NORM,
    )  # fmt: skip


def one_run(
    model_folder: str, keep: Path, group: Group, *, given: PrivacyPlan, noise: NoiseSource, checkpoint_every: int = 2
) -> dict[str, Any]:
    """Train, and tell the gradients each step was taken with, the steps, the lots and the adapter."""
    tokenizer = load_tokenizer(model_folder)
    rows = [
        {"problem": f"Add {n}.", "solution": f"def f(x):\n    if x:\n        return x + {n}\n", "lang": "python"}
        for n in range(UNITS)
    ]
    units = [[make_sequence(row, template="chat", tokenizer=tokenizer, seq_length=120)] for row in rows]
    model = add_adapter(load_base(model_folder, dtype="float32"), LORA, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    engine = NativeEngine(model)
    gradients: list[list[Tensor]] = []
    handle = register_optimizer_step_pre_hook(
        lambda *_: gradients.append([p.grad.clone() for p in engine.parameters if p.grad is not None])
    )
    lots: list[int] = []
    counter = StepCounter(keep)
    train(
        model, units, plan=given, spec=SPEC, engine=engine,
        sampler=PoissonSampler(units=given.units, sample_rate=given.sample_rate, seed=4), noise=noise, counter=counter,
        checkpoints=CheckpointFile(keep, run="run"), checkpoint_every=checkpoint_every, micro_batch=2,
        on_step=lambda metrics: lots.append(metrics.lot), group=group,
    )  # fmt: skip
    handle.remove()
    adapter = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    return {"gradients": gradients, "steps_taken": counter.taken, "lots": lots, "adapter": adapter}


def no_noise(like: Tensor, *, std: float) -> Tensor:
    assert std == NOISE * NORM
    return torch.zeros_like(like)


def all_runs(model_folder: str, folder: Path, group: Group) -> dict[str, Any]:
    seen = {}
    for name, given, noise in (
        ("sums", plan(steps=3, sample_rate=0.7), no_noise),
        ("noise", plan(steps=4, sample_rate=1e-12), secret_gaussian),
    ):
        keep = folder / name
        keep.mkdir(exist_ok=True)
        seen[name] = one_run(model_folder, keep, group, given=given, noise=noise)
    # A resumed run: rank 0's last checkpoint is one step old, and the others have none.
    newest = max((folder / "sums").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    group.broadcast_object(None)
    if group.rank == 0:
        newest.unlink()
    group.broadcast_object(None)
    seen["resumed"] = one_run(
        model_folder, folder / "sums", group, given=plan(steps=3, sample_rate=0.7), noise=no_noise
    )
    return seen


if __name__ == "__main__":
    model, target, rank, world = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    if world == 1:
        result = all_runs(model, target, Alone())
    else:
        dist.init_process_group("gloo", init_method=f"file://{target}/store", rank=rank, world_size=world)
        result = all_runs(model, target, ProcessGroup())
        dist.destroy_process_group()
    torch.save(result, target / f"seen-{rank}.pt")

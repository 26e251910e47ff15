"""Two runs on one model, the second under a real limit of memory: ``python scarce_worker.py FOLDER``; see
``test_micro_batching.py``. Prints how far the two clipped sums differ, and the sizes of the second's micro-batches."""

from __future__ import annotations

import copy
import json
import resource
import sys
from pathlib import Path

import torch
from test_dp_sgd import SPEC, no_noise, plan_of
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from privcode.specs import LoraSpec
from services.trainer.core.checkpoint import CheckpointFile, StepCounter
from services.trainer.core.dp_sgd import train
from services.trainer.core.engine import ClipCounts, ClippingRule
from services.trainer.core.lora import add_adapter
from services.trainer.core.native_engine import NativeEngine
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.sequences import TokenSequence

ROWS, LENGTH, VOCABULARY, LAYERS, WIDE = 8, 1024, 64, 3, 1024


class Recording(NativeEngine):
    def __init__(self, model: object) -> None:
        super().__init__(model)
        self.sizes: list[int] = []

    def accumulate(
        self, losses: Tensor, *, rule: ClippingRule, units: Tensor | None = None, unfinished: bool = False
    ) -> ClipCounts:
        counts = super().accumulate(losses, rule=rule, units=units, unfinished=unfinished)
        self.sizes.append(len(losses))
        return counts


def virtual_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=WIDE, num_hidden_layers=LAYERS, num_attention_heads=2
    )
    lora = LoraSpec(rank=2, alpha=4.0, target_modules=("q_proj", "down_proj"))
    first = add_adapter(LlamaForCausalLM(config), lora, seed=0)
    second = copy.deepcopy(first)
    answer = torch.arange(LENGTH) > 0
    units = [
        [TokenSequence(token_ids=torch.randint(VOCABULARY, (LENGTH,)), answer=answer, structure=answer & (n > 5))]
        for n in range(ROWS)
    ]
    plan = plan_of([unit[0] for unit in units], steps=1, sample_rate=1 - 1e-12)
    sums: list[list[Tensor]] = []
    for model, micro_batch in ((first, 1), (second, ROWS)):
        engine, seen = Recording(model), []

        def noise(like: Tensor, *, std: float, seen: list[Tensor] = seen) -> Tensor:
            seen.append(like.flatten().clone())
            return no_noise(like, std=std)

        if micro_batch == ROWS:
            # Room for about three rows: of each layer the gate, up and their product, and as much in passing.
            room = 3 * 2 * 3 * 4 * LENGTH * WIDE * LAYERS
            resource.setrlimit(resource.RLIMIT_AS, (virtual_bytes() + room,) * 2)
        keep = folder / str(micro_batch)
        keep.mkdir()
        train(
            model, units, plan=plan, spec=SPEC, engine=engine,
            sampler=PoissonSampler(units=ROWS, sample_rate=plan.sample_rate, seed=7), noise=noise,
            counter=StepCounter(keep), checkpoints=CheckpointFile(keep, run="run"), checkpoint_every=100,
            micro_batch=micro_batch, on_step=lambda _: None,
        )  # fmt: skip
        sums.append([torch.cat(seen)])
    (expected,), (found,) = sums
    print(json.dumps({"error": float((found - expected).norm() / expected.norm()), "sizes": engine.sizes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

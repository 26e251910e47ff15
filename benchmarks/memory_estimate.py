"""Is the memory estimate right? A few private steps in a child process on SmolLM2-135M, with its peak resident memory
against ``services/trainer/core/memory.py``. On the CPU.

``python benchmarks/memory_estimate.py``
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import torch

from lm.models import load_tokenizer, resolve_model
from privcode.models import model_info
from privcode.specs import LoraSpec, RuntimeSpec
from services.trainer.core.engine import ClippingRule
from services.trainer.core.loading import checkpoint_gradients, load_base
from services.trainer.core.lora import add_adapter
from services.trainer.core.memory import MIB, estimate
from services.trainer.core.native_engine import NativeEngine
from services.trainer.core.noise import secret_gaussian
from services.trainer.core.privsa import per_example_loss
from services.trainer.core.sequences import collate, make_sequence, micro_batches

_MODEL: Final = "smollm2-135m-instruct"
_SEQ_LENGTH: Final = 256
_LORA: Final = LoraSpec(
    rank=16,
    alpha=32.0,
    dropout=0.05,
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
_RUNS: Final[tuple[dict[str, Any], ...]] = (
    {"micro_batch": 1},
    {"micro_batch": 2},
    {"micro_batch": 4},
    {"micro_batch": 4, "gradient_checkpointing": True},
    {"micro_batch": 2, "base_dtype": "bfloat16"},
)


def peak(folder: str, runtime: RuntimeSpec) -> int:
    """Peak resident bytes of this process over one step of one micro-batch that fills ``_SEQ_LENGTH``."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(folder)
    solution = "def f(x):\n" + "".join(f"    if x == {n}:\n        return {n * n}\n" for n in range(200))
    row = {"problem": "Square.", "solution": solution, "lang": "python"}
    sequence = make_sequence(row, template="chat", tokenizer=tokenizer, seq_length=_SEQ_LENGTH)
    model = add_adapter(load_base(folder, dtype=runtime.base_dtype), _LORA, seed=0)
    if runtime.gradient_checkpointing:
        checkpoint_gradients(model)
    engine = NativeEngine(model)
    optimizer = torch.optim.AdamW(engine.parameters)
    for rows in micro_batches([[sequence]] * runtime.micro_batch, size=runtime.micro_batch):
        batch = collate(rows, device=model.device)
        losses = per_example_loss(model, batch, kl_weight=1.0) * batch.weights
        engine.accumulate(losses, rule=ClippingRule(max_grad_norm=1.0, style="flat"), units=batch.units)
    for parameter, total in zip(engine.parameters, engine.take_sum(), strict=True):
        parameter.grad = (total + secret_gaussian(total, std=1.0)) / 8
    optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as models:
        folder = sys.argv[1] if len(sys.argv) > 1 else resolve_model(_MODEL, models_dir=Path(models))
        shape = model_info(_MODEL, models_dir=Path(models)).shape
        assert shape is not None
        for given in _RUNS:
            runtime = RuntimeSpec(**given)
            output = subprocess.run(
                [sys.executable, __file__, "--child", folder, runtime.model_dump_json()],
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
            estimated, measured = estimate(shape, _LORA, runtime=runtime, seq_length=_SEQ_LENGTH).total, int(output)
            figures = {"estimated_mib": estimated // MIB, "peak_mib": measured // MIB}
            print(json.dumps({**given, **figures, "ratio": round(estimated / measured, 2)}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(peak(sys.argv[2], RuntimeSpec.model_validate_json(sys.argv[3])))
    else:
        main()

"""What a private run costs: memory by ``services/trainer/core/memory.py`` and time by counting operations.

Prints the tables of ``docs/cost-model.md``. ``python benchmarks/cost_model.py``

Time: a step is ``expected_batch`` sequences of ``seq_length`` tokens, and a token costs, with N the base model's
parameters (embeddings apart, head included) and P the adapter's:

    forward        2 N          backward       2 N (frozen weights need no gradient)
    adapter        6 P          PrivSA's base  2 N (a second forward without gradients; 0 with a cached teacher)
    checkpointing  2 N (each layer's forward once more)
    attention      2 * layers * query width * seq_length for each forward, twice that for the backward

divided by the device's dense bfloat16 peak times its utilisation. Sampling, clipping and the optimizer are left out;
noise from the operating system is on the CPU and adds what docs/adr/0006 measured: 0.165 microseconds a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from privcode.models import CATALOGUE, ModelShape
from privcode.specs import LoraSpec, RuntimeSpec
from services.trainer.core.memory import MIB, estimate

_MODELS: Final = ("Qwen/Qwen2.5-Coder-1.5B", "Qwen/Qwen2.5-Coder-7B")
_LORA: Final = LoraSpec(
    rank=16,
    alpha=32.0,
    dropout=0.05,
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
_SEQ_LENGTH: Final = 1024
_EXPECTED_BATCH: Final = 256
_STEPS: Final = 100
_UTILISATION: Final = 0.4
_NOISE_SECONDS: Final = 0.165e-6
# Of a device's memory, what the driver and other processes leave.
_USABLE: Final = 0.95


@dataclass(frozen=True)
class Gpu:
    name: str
    gib: int
    tflops: float  # dense bfloat16, the manufacturer's figure


_GPUS: Final = (Gpu("A10", 24, 125), Gpu("L40S", 48, 362), Gpu("A100", 80, 312), Gpu("H100 SXM", 80, 989))
_FORMS: Final = tuple(
    RuntimeSpec(base_dtype=dtype, gradient_checkpointing=checkpointing)
    for dtype in ("float32", "bfloat16", "int8")
    for checkpointing in (False, True)
)  # fmt: skip


def step_seconds(shape: ModelShape, gpu: Gpu, *, checkpointing: bool) -> float:
    trainable = shape.lora_parameters(_LORA)
    weights = shape.linear_parameters + shape.vocab_size * shape.hidden_size
    passes = 4 if checkpointing else 3  # forward, PrivSA's base, backward, and the forward once more
    attention = 2 * shape.num_hidden_layers * shape.query_size * _SEQ_LENGTH * (passes + 1)
    operations = _EXPECTED_BATCH * _SEQ_LENGTH * (2 * weights * passes + 6 * trainable + attention)
    return operations / (gpu.tflops * 1e12 * _UTILISATION) + _NOISE_SECONDS * trainable


def largest_micro_batch(shape: ModelShape, runtime: RuntimeSpec, *, gib: int) -> int:
    """The largest power of two, up to 64, that fits; 0 if none does."""
    fitting = 0
    for micro_batch in (1, 2, 4, 8, 16, 32, 64):
        given = runtime.model_copy(update={"micro_batch": micro_batch})
        if estimate(shape, _LORA, runtime=given, seq_length=_SEQ_LENGTH).total <= _USABLE * gib * 1024 * MIB:
            fitting = micro_batch
    return fitting


def main() -> None:
    for reference in _MODELS:
        shape = CATALOGUE[reference].shape
        assert shape is not None
        print(f"\n### {reference}\n")
        print(
            "| base_dtype | checkpointing | MiB at micro_batch 1 | 24 GB | 48 GB | 80 GB |\n|---|---|---|---|---|---|"
        )
        for runtime in _FORMS:
            one = runtime.model_copy(update={"micro_batch": 1})
            needed = estimate(shape, _LORA, runtime=one, seq_length=_SEQ_LENGTH).total // MIB
            fits = [largest_micro_batch(shape, runtime, gib=gib) for gib in (24, 48, 80)]
            cells = " | ".join(str(size) if size else "no" for size in fits)
            print(f"| {runtime.base_dtype} | {_yes(runtime)} | {needed:,} | {cells} |")
        print("\n| GPU | checkpointing | s a step | hours for 100 steps |\n|---|---|---|---|")
        for gpu in _GPUS:
            for checkpointing in (False, True):
                seconds = step_seconds(shape, gpu, checkpointing=checkpointing)
                flag = "yes" if checkpointing else "no"
                print(f"| {gpu.name}, {gpu.gib} GB | {flag} | {seconds:.0f} | {seconds * _STEPS / 3600:.1f} |")


def _yes(runtime: RuntimeSpec) -> str:
    return "yes" if runtime.gradient_checkpointing else "no"


if __name__ == "__main__":
    main()

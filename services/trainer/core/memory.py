"""How much memory a private run takes, estimated before anything is loaded, and how much there is.

The estimate is for a Llama or Qwen2 decoder (RMSNorm, grouped-query attention that never forms the scores, gated MLP)
under :class:`~services.trainer.core.native_engine.NativeEngine`, in bytes:

    weights      parameters * size of the base type; in int8 the linear layers take 1 byte and the rest 2
    adapter      32 a trainable parameter P: value, clipped sum, noise, noised sum, gradient and AdamW's two moments,
                 all float32, and AdamW's own working copy
    gradients    2 * 4 * P * micro_batch: each row's, and once more while rows are joined into units
    activations  what autograd keeps of each layer for each token; with gradient checkpointing the layer's input only,
                 and all of one layer while it is computed again
    head         16 for each entry of the logits that are in memory at a time: logits and log p, of the student and of
                 the teacher
    runtime      0.5 GiB for Python, torch and the tokenizer or the CUDA context, and a tenth of the rest for
                 fragments and the allocator's cache

When the head's backward begins all activations are there and no gradient; when the first layer's ends it is the other
way round. So the peak is weights + adapter + runtime + the larger of (activations + head) and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from privcode.errors import StageFailed
from privcode.models import ModelShape
from privcode.specs import LoraSpec, RuntimeSpec
from services.trainer.core.head_loss import LOGITS_AT_ONCE

MIB: Final = 2**20

_SIZE: Final = {"float32": 4, "bfloat16": 2, "int8": 2}
_ADAPTER_BYTES: Final = 32
_HEAD_BYTES: Final = 16
_RUNTIME_BYTES: Final = 512 * MIB
_FRAGMENTS: Final = 1.1


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes; the fields are explained in the module's docstring."""

    weights: int
    adapter: int
    gradients: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        parts = self.weights + self.adapter + max(self.activations + self.head, self.gradients)
        return _RUNTIME_BYTES + int(_FRAGMENTS * parts)


def estimate(shape: ModelShape, lora: LoraSpec, *, runtime: RuntimeSpec, seq_length: int) -> MemoryEstimate:
    """What one process needs at most: every sequence has ``seq_length`` tokens, and nearly all are answer."""
    trainable = shape.lora_parameters(lora)
    tokens = runtime.micro_batch * seq_length
    size = _SIZE[runtime.base_dtype]
    layer = _layer_bytes(shape, lora, size=size)
    # While a layer's backward runs: gradients of the MLP's three wide tensors and of the streams around it.
    passing = 4 * (3 * shape.intermediate_size + 4 * shape.hidden_size)
    if runtime.gradient_checkpointing:
        activations = shape.num_hidden_layers * size * shape.hidden_size + layer + passing
    else:
        activations = shape.num_hidden_layers * layer + passing
    return MemoryEstimate(
        weights=_weight_bytes(shape, int8=runtime.base_dtype == "int8", size=size),
        adapter=_ADAPTER_BYTES * trainable,
        gradients=2 * 4 * trainable * runtime.micro_batch,
        activations=tokens * activations,
        head=_HEAD_BYTES * min(tokens * shape.vocab_size, max(LOGITS_AT_ONCE, shape.vocab_size)),
    )


def require_memory(needed: MemoryEstimate, *, available: int, processes: int) -> None:
    """Raise :class:`StageFailed` (``not_enough_memory``) unless ``processes`` such runs fit ``available`` bytes."""
    total = needed.total * processes
    if total > available:
        raise StageFailed(
            f"about {total // MIB} MiB are needed and {available // MIB} MiB are there; runtime.micro_batch, "
            "runtime.gradient_checkpointing, runtime.base_dtype and, on a machine without GPU, runtime.processes can "
            "make it less",
            code="not_enough_memory",
        )


def available_memory() -> int:
    """Bytes that this process could take: of the current GPU, or of this machine and its control group."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    group = _group_bytes()
    return _machine_bytes() if group is None else min(group, _machine_bytes())


def _weight_bytes(shape: ModelShape, *, int8: bool, size: int) -> int:
    linear = shape.linear_parameters
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    return linear * (1 if int8 else size) + embeddings * size


def _layer_bytes(shape: ModelShape, lora: LoraSpec, *, size: int) -> int:
    """What autograd keeps of one layer for one token, from counting saved tensors."""
    hidden, wide = shape.hidden_size, shape.intermediate_size
    query, key = shape.query_size, shape.key_size
    kept = 2 * (size * hidden + 4)  # the inputs of both norms, and their scales
    kept += 2 * size * (query + key)  # attention: query, key, value, output
    kept += 2 * size * wide  # MLP: gate before its activation, and up
    kept += 4 * lora.rank * len(lora.target_modules)
    inputs = {"o_proj": query, "down_proj": wide}
    widths = {module: inputs.get(module, hidden) for module in lora.target_modules}
    shared = {_SHARED_INPUT[module]: width for module, width in widths.items() if module != "o_proj"}
    kept += size * sum(shared.values())
    return kept + (sum(widths.values()) if lora.dropout else 0)  # dropout's masks, a byte each


# Modules that read the same tensor; that of o_proj is attention's output, which is kept anyway.
_SHARED_INPUT: Final = {
    "q_proj": "attention", "k_proj": "attention", "v_proj": "attention",
    "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "product",
}  # fmt: skip


def _machine_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise StageFailed("/proc/meminfo does not tell how much memory is available", code="not_enough_memory")


def _group_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group (version 2) leaves to us, None without a limit. Pages of files that it could drop count
    as free."""
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else int(limit) - used + int(stat["inactive_file"])

"""The memory estimate against what torch really keeps, and the refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from privcode.errors import StageFailed
from privcode.models import CATALOGUE, ModelShape
from privcode.specs import LoraModule, LoraSpec, RuntimeSpec
from services.trainer.core import memory
from services.trainer.core.loading import checkpoint_gradients
from services.trainer.core.lora import add_adapter
from services.trainer.core.memory import MIB, available_memory, estimate, require_memory
from services.trainer.core.native_engine import NativeEngine

ALL: tuple[LoraModule, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIZES = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 2}
BATCH, LENGTH = 2, 32


def shape_of(layers: int, **over: Any) -> ModelShape:
    return ModelShape.model_validate(
        {"num_hidden_layers": layers, **SIZES, "vocab_size": 64, "tie_word_embeddings": True, **over}
    )


def kept_per_token(layers: int, *, dtype: torch.dtype, lora: LoraSpec, checkpointing: bool) -> float:
    """Bytes that autograd holds for the backward pass, without the model's own."""
    config = LlamaConfig(**shape_of(layers).model_dump(exclude={"head_dim"}))
    model = add_adapter(LlamaForCausalLM(config).to(dtype), lora, seed=0)
    if checkpointing:
        checkpoint_gradients(model)
    NativeEngine(model)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.get_base_model().base_model(input_ids=torch.ones(BATCH, LENGTH, dtype=torch.int64), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own) / BATCH / LENGTH


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("modules", [ALL, ("q_proj", "v_proj"), ("o_proj", "up_proj")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_layer_keeps(dtype: Any, modules: tuple[LoraModule, ...], dropout: float) -> None:
    lora = LoraSpec(rank=4, alpha=4.0, dropout=dropout, target_modules=modules)
    two, three = (
        kept_per_token(layers, dtype=getattr(torch, dtype), lora=lora, checkpointing=False) for layers in (2, 3)
    )
    runtime = RuntimeSpec(micro_batch=1, base_dtype=dtype)
    estimates = [estimate(shape_of(layers), lora, runtime=runtime, seq_length=1).activations for layers in (2, 3)]
    assert estimates[1] - estimates[0] == pytest.approx(three - two, rel=0.03)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_checkpointing_a_layer_keeps_its_input(dtype: Any) -> None:
    lora = LoraSpec(rank=4, alpha=4.0, target_modules=ALL)
    two, three = (
        kept_per_token(layers, dtype=getattr(torch, dtype), lora=lora, checkpointing=True) for layers in (2, 3)
    )
    runtime = RuntimeSpec(micro_batch=1, base_dtype=dtype, gradient_checkpointing=True)
    estimates = [estimate(shape_of(layers), lora, runtime=runtime, seq_length=1).activations for layers in (2, 3)]
    assert estimates[1] - estimates[0] == pytest.approx(three - two, rel=0.03)


def test_weights_are_those_of_the_model() -> None:
    lora = LoraSpec(rank=4, alpha=4.0, target_modules=ALL)
    for tied in (True, False):
        shape = shape_of(3, tie_word_embeddings=tied)
        model = LlamaForCausalLM(LlamaConfig(**shape.model_dump(exclude={"head_dim"})))
        expected = sum(parameter.numel() for parameter in model.parameters())
        found = {
            dtype: estimate(shape, lora, runtime=RuntimeSpec(base_dtype=dtype), seq_length=16).weights
            for dtype in ("float32", "bfloat16", "int8")
        }
        assert found["float32"] / 4 == pytest.approx(expected, rel=0.01)
        assert found["bfloat16"] * 2 == found["float32"]
        assert found["int8"] == found["bfloat16"] - shape.linear_parameters


@pytest.mark.parametrize(
    ("reference", "billions"),
    [
        ("smollm2-135m-instruct", 0.1345), ("Qwen/Qwen2.5-Coder-1.5B", 1.544), ("Qwen/Qwen2.5-Coder-7B", 7.616),
        ("deepseek-ai/deepseek-coder-6.7b-base", 6.74), ("google/codegemma-7b", 8.54),
        ("Qwen/CodeQwen1.5-7B", 7.25), ("meta-llama/Llama-3.1-8B-Instruct", 8.03),
    ],
)  # fmt: skip
def test_the_catalogues_models_have_their_published_size(reference: str, billions: float) -> None:
    shape = CATALOGUE[reference].shape
    assert shape is not None
    lora = LoraSpec(rank=4, alpha=4.0, target_modules=ALL)
    weights = estimate(shape, lora, runtime=RuntimeSpec(base_dtype="bfloat16"), seq_length=16).weights
    assert weights / 2e9 == pytest.approx(billions, rel=0.005)


def test_each_runtime_value_that_the_message_names_needs_less() -> None:
    shape = CATALOGUE["Qwen/Qwen2.5-Coder-1.5B"].shape
    assert shape is not None
    lora = LoraSpec(rank=16, alpha=32.0, dropout=0.05, target_modules=ALL)

    def total(**over: Any) -> int:
        return estimate(shape, lora, runtime=RuntimeSpec(**over), seq_length=1024).total

    assert total(micro_batch=2) < total(micro_batch=4)
    assert total(gradient_checkpointing=True) < total()
    assert total(base_dtype="int8") < total(base_dtype="bfloat16") < total()
    # The per-example gradients of many rows outweigh their activations only where those are few.
    many = estimate(shape, lora, runtime=RuntimeSpec(micro_batch=64), seq_length=1)
    assert many.gradients > many.activations + many.head
    assert many.total > 1.1 * many.gradients


def test_a_run_that_does_not_fit_is_refused() -> None:
    lora = LoraSpec(rank=4, alpha=4.0, target_modules=ALL)
    needed = estimate(shape_of(2), lora, runtime=RuntimeSpec(), seq_length=16)
    require_memory(needed, available=needed.total, processes=1)
    with pytest.raises(StageFailed, match=r"about 1\d\d\d MiB are needed and 512 MiB .*runtime\.processes") as refused:
        require_memory(needed, available=512 * MIB, processes=2)
    assert refused.value.code == "not_enough_memory"


def test_a_control_groups_limit_counts(tmp_path: Path) -> None:
    assert memory._group_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 1000\n")
    assert memory._group_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory._group_bytes(tmp_path) == 5000 - 3000 + 1000
    if not torch.cuda.is_available():
        assert 0 < available_memory() <= memory._machine_bytes() * 2

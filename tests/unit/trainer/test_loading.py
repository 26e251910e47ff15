"""The base model's form: what is refused, what it must not change."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_dp_sgd import no_noise, plan_of, run
from tiny_lora import randomise
from torch import Tensor, nn

from privcode.errors import StageFailed
from privcode.specs import LoraSpec
from services.trainer.core.loading import checkpoint_gradients, load_base
from services.trainer.core.lora import add_adapter, trainable
from services.trainer.core.sequences import TokenSequence

LORA = LoraSpec(rank=2, alpha=4.0, target_modules=("q_proj", "up_proj"))


def clipped_sum(model: PeftModel, sequences: list[TokenSequence], folder: Path) -> Tensor:
    """What the first step's noise is added to."""
    seen: list[Tensor] = []

    def noise(like: Tensor, *, std: float) -> Tensor:
        seen.append(like.flatten().clone())
        return no_noise(like, std=std)

    folder.mkdir()
    run(model, sequences, folder, plan=plan_of(sequences, steps=1, sample_rate=1.0), noise=noise)
    return torch.cat(seen)


def test_checkpointing_gradients_changes_no_gradient(
    adapted: PeftModel, sequences: list[TokenSequence], tmp_path: Path
) -> None:
    plain = copy.deepcopy(adapted)
    checkpoint_gradients(adapted)
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    adapted.get_base_model().model.layers[0].mlp.register_forward_pre_hook(count)
    expected, found = clipped_sum(plain, sequences, tmp_path / "a"), clipped_sum(adapted, sequences, tmp_path / "b")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    # Three micro-batches: each forward, each once more in its backward, and PrivSA's base model.
    assert forwards == 3 * 3


def test_checkpointing_brings_no_dropout_to_life(adapted: PeftModel) -> None:
    layer = adapted.get_base_model().model.layers[0]
    layer.dropout = nn.Dropout(0.5).eval()
    checkpoint_gradients(adapted)
    assert layer.training
    assert [name for name, module in adapted.named_modules() if module.training and "layers" in name] == [
        f"base_model.model.model.layers.{number}" for number in range(2)
    ]


def test_a_model_without_such_layers_is_refused(adapted: PeftModel) -> None:
    adapted.get_base_model().model.layers = nn.ModuleList()
    with pytest.raises(StageFailed, match=r"runtime\.gradient_checkpointing") as refused:
        checkpoint_gradients(adapted)
    assert refused.value.code == "unsupported_option"


def test_a_bfloat16_base_has_a_float32_adapter(
    model_folder: Callable[[str], Path], sequences: list[TokenSequence], tmp_path: Path
) -> None:
    folder = model_folder("tiny")
    exact, short = (add_adapter(load_base(folder, dtype=dtype), LORA, seed=0) for dtype in ("float32", "bfloat16"))
    for model in (exact, short):
        randomise(model)
        assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    assert {parameter.dtype for parameter in short.parameters() if not parameter.requires_grad} == {torch.bfloat16}
    expected, found = clipped_sum(exact, sequences, tmp_path / "a"), clipped_sum(short, sequences, tmp_path / "b")
    assert found.dtype == torch.float32
    assert float(torch.nn.functional.cosine_similarity(found, expected, dim=0)) > 0.98


@pytest.mark.skipif(
    torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None, reason="int8 works here"
)
def test_int8_is_refused_where_it_can_not_be(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(StageFailed, match=r"runtime\.base_dtype: int8 needs") as refused:
        load_base(model_folder("tiny"), dtype="int8")
    assert refused.value.code == "unsupported_option"

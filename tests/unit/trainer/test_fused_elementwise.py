"""Norms and gated products against transformers' own forward and autograd's backward."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import GemmaConfig, LlamaConfig, Qwen2Config
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm

from services.trainer.core.fused_elementwise import fuse_elementwise

SHAPE = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
MODULES = {
    "LlamaRMSNorm": lambda: LlamaRMSNorm(24, eps=1e-3),
    "Qwen2RMSNorm": lambda: Qwen2RMSNorm(24, eps=1e-3),
    "LlamaMLP": lambda: LlamaMLP(LlamaConfig(**SHAPE)),
    "Qwen2MLP": lambda: Qwen2MLP(Qwen2Config(**SHAPE)),
}


def frozen(module: nn.Module) -> nn.Module:
    """With weights away from their initial ones."""
    for parameter in module.requires_grad_(False).parameters():
        parameter.data = torch.randn(parameter.shape)
    return module


def both_ways(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the input for fixed gradients of the output."""
    own = x.clone().requires_grad_()
    output = module(own)
    output.backward(torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output))
    assert own.grad is not None
    return output.detach(), own.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODULES)
def test_values_and_gradients_are_transformers_own(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = frozen(MODULES[name]()).to(dtype)
    ours = copy.deepcopy(theirs)
    fuse_elementwise(ours)
    assert "forward" in vars(ours), "nothing was replaced"
    x = (3 * torch.randn(2, 5, 24)).to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.15}
    for own, their in zip(both_ways(ours, x), both_ways(theirs, x), strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own, their, **tolerance)


@pytest.mark.parametrize("make", [lambda: GemmaRMSNorm(24), lambda: GemmaMLP(GemmaConfig(**SHAPE))])
def test_other_formulas_stay_as_they_are(make: Callable[[], nn.Module]) -> None:
    module = frozen(make())
    fuse_elementwise(module)
    assert "forward" not in vars(module)


def test_a_norm_that_is_trained_stays_as_it_is() -> None:
    module = LlamaRMSNorm(24)
    fuse_elementwise(module)
    module(torch.randn(2, 24)).sum().backward()
    assert module.weight.grad is not None

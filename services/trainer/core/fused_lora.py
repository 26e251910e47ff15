"""One autograd function for a whole LoRA layer: frozen weight, A and B together.

    y = x W' + bias + scaling * dropout(x) A' B'        x [batch, length, in], A [rank, in], B [out, rank]

Its backward forms the gradients of A and B of every example, which are small, in two batched products. Autograd then
does not form their sum a second time, no module hook keeps activations alive, and of ``dropout(x)`` only a mask of
bytes is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from privcode.errors import StageFailed
from services.trainer.core.lora import ab

PerExample = dict[nn.Parameter, Tensor]


def fuse(layer: LoraLinear, gradients: PerExample | None) -> None:
    """Replace the layer's forward for good. Dropout then applies wherever gradients are on.

    Its backward puts the gradients of each example into ``gradients``, float32 [batch, ...] by parameter; with None
    the parameters get their summed gradients from autograd as usual. Raises :class:`StageFailed`
    (``unsupported_layer``) for anything but plain LoRA.
    """
    (name,) = layer.active_adapters
    if layer.lora_variant or layer.lora_bias[name]:
        raise StageFailed("only plain LoRA on linear layers can be trained with privacy", code="unsupported_layer")
    layer.forward = partial(_forward, layer, layer.forward, gradients)


def _forward(layer: LoraLinear, plain: Callable[[Tensor], Tensor], gradients: PerExample | None, x: Tensor) -> Tensor:
    if layer.disable_adapters or not torch.is_grad_enabled():
        return plain(x)
    if x.dim() != 3:
        raise StageFailed(f"a LoRA layer's input is [batch, length, width], not {x.dim()}-d", code="unsupported_layer")
    (name,) = layer.active_adapters
    base, (a, b) = layer.get_base_layer(), ab(layer)
    rate = getattr(layer.lora_dropout[name], "p", 0.0)
    # Drawn in the one byte that is kept: a wider tensor first would leave a hole that nothing fits into.
    keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - rate) if rate else None
    scaling = layer.scaling[name]
    if type(base) is nn.Linear:
        output: Tensor = _FusedLora.apply(x, base.weight, base.bias, a, b, keep, rate, scaling, gradients)  # type: ignore[no-untyped-call]
        return output
    # A base layer of another kind (quantized, say) has a backward of its own.
    delta: Tensor = _FusedLora.apply(x, None, None, a, b, keep, rate, scaling, gradients)  # type: ignore[no-untyped-call]
    frozen: Tensor = base(x)
    return frozen + delta.to(frozen.dtype)


class _FusedLora(torch.autograd.Function):
    """See the module's docstring; without ``weight`` only the adapter's part of y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, a: nn.Parameter, b: nn.Parameter,
        keep: Tensor | None, rate: float, scaling: float, gradients: PerExample | None,
    ) -> Tensor:  # fmt: skip
        low = _dropped(x, keep, rate, a.dtype) @ a.T
        ctx.save_for_backward(x, low, weight, a, b, keep)
        ctx.rate, ctx.scaling, ctx.gradients = rate, scaling, gradients
        ctx.parameters = a, b  # saved tensors may come back as other objects (gradient checkpointing)
        ctx.autocast = _autocast_now(x.device.type)
        if weight is None:
            return (low @ b.T).mul_(scaling)
        y = nn.functional.linear(x, weight, bias)
        if y.dtype != low.dtype:
            return y.add_((low @ b.T).to(y.dtype), alpha=scaling)
        # In place and in one product: no copy of y, which is as large as anything in the network.
        y.view(-1, y.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.T.to(low.dtype), alpha=scaling)
        return y

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        with ctx.autocast():
            return _backward(ctx, *outputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, low, weight, a, b, keep = ctx.saved_tensors
    dropped = _dropped(x, keep, ctx.rate, a.dtype)
    adapted = grad.to(low.dtype)
    grad_low = (adapted @ b.to(low.dtype)).mul_(ctx.scaling)
    grad_a = grad_b = None
    if ctx.gradients is None:
        grad_a = _sum_product(grad_low, dropped, a)
        grad_b = _sum_product(adapted, low, b).mul_(ctx.scaling)
    else:
        of_a, of_b = ctx.parameters
        if of_a in ctx.gradients:
            raise StageFailed("a LoRA layer is used twice in one forward pass", code="unsupported_layer")
        ctx.gradients[of_a] = (grad_low.mT @ dropped).to(a.dtype)
        # As the transpose of a short, wide product, which is the faster of the two.
        ctx.gradients[of_b] = (low.mT @ adapted).mT.to(b.dtype).mul_(ctx.scaling)
    grad_x = None
    if ctx.needs_input_grad[0]:
        through = grad_low @ a.to(grad_low.dtype)
        if keep is not None:
            through = through.mul_(keep).div_(1 - ctx.rate)
        grad_x = through.to(x.dtype) if weight is None else (grad @ weight).to(x.dtype).add_(through.to(x.dtype))
    return grad_x, None, None, grad_a, grad_b, None, None, None, None


def _dropped(x: Tensor, keep: Tensor | None, rate: float, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return x if keep is None else (x * keep).div_(1 - rate)


def _sum_product(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    """left' right over batch and length, in the dtype of the parameter it is the gradient of."""
    return (left.flatten(0, 1).T @ right.flatten(0, 1)).to(like.dtype)


def _autocast_now(device_type: str) -> Callable[[], torch.autocast]:
    """The autocast state of a forward, to be taken up again in its backward, where autograd has none."""
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return partial(torch.autocast, device_type, dtype=dtype, enabled=enabled)

"""Our own engine of per-example gradients, for LoRA adapters.

It replaces the forward of each LoRA layer by one autograd function over the frozen weight, A and B together. Its
backward forms every example's gradient of A and B, which are small, in two batched products, so that autograd does not
form their sum a second time and no module hook keeps activations alive.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from privcode.errors import StageFailed
from services.trainer.core.engine import ClipCounts, ClippingRule, add_clipped
from services.trainer.core.lora import ab, lora_layers

PerExample = dict[nn.Parameter, Tensor]


class NativeEngine:
    """Our own implementation of :class:`PerExampleEngine`. Takes the model over for good.

    LoRA dropout applies wherever gradients are on, so that the model itself can stay in evaluation mode. Raises
    :class:`StageFailed` (``unsupported_layer``) for anything trainable that is not a plain LoRA linear layer.
    """

    def __init__(self, model: PeftModel) -> None:
        self._gradients: PerExample = {}
        layers = lora_layers(model)
        self._sums = {parameter: torch.zeros_like(parameter) for layer in layers for parameter in ab(layer)}
        self._begun: list[Tensor] | None = None  # the gradient so far of a unit whose rows are not all in
        for layer in layers:
            _fuse(layer, self._gradients)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._sums)

    def accumulate(
        self, losses: Tensor, *, rule: ClippingRule, units: Tensor | None = None, unfinished: bool = False
    ) -> ClipCounts:
        self._gradients.clear()  # of a call that did not get to its end
        losses.sum().backward()  # type: ignore[no-untyped-call]
        gradients = [self._gradients.pop(parameter) for parameter in self._sums]
        if units is not None:
            gradients = self._joined(gradients, units)
        if unfinished:
            self._begun = [gradient[-1].clone() for gradient in gradients]
            gradients = [gradient[:-1] for gradient in gradients]
        else:
            self._begun = None
        return add_clipped(self._sums, gradients, rule=rule)

    def _joined(self, gradients: list[Tensor], units: Tensor) -> list[Tensor]:
        """The rows' gradients summed by unit, with what was begun added to the first."""
        _, rows = torch.unique_consecutive(units, return_inverse=True)
        size = int(rows[-1]) + 1
        joined = [gradient.new_zeros(size, *gradient.shape[1:]).index_add_(0, rows, gradient) for gradient in gradients]
        for gradient, begun in zip(joined, self._begun or [], strict=False):
            gradient[0] += begun
        return joined

    def take_sum(self) -> list[Tensor]:
        taken = list(self._sums.values())
        self._sums = {parameter: torch.zeros_like(parameter) for parameter in self._sums}
        return taken


def _fuse(layer: LoraLinear, gradients: PerExample) -> None:
    (name,) = layer.active_adapters
    if layer.lora_variant or layer.lora_bias[name] or type(layer.get_base_layer()) is not nn.Linear:
        raise StageFailed("only plain LoRA on linear layers can be trained with privacy", code="unsupported_layer")
    layer.forward = partial(_forward, layer, layer.forward, gradients)


def _forward(layer: LoraLinear, plain: Callable[[Tensor], Tensor], gradients: PerExample, x: Tensor) -> Tensor:
    if layer.disable_adapters or not torch.is_grad_enabled():
        return plain(x)
    if x.dim() != 3:
        raise StageFailed(f"a LoRA layer's input is [batch, length, width], not {x.dim()}-d", code="unsupported_layer")
    (name,) = layer.active_adapters
    base, (a, b) = layer.get_base_layer(), ab(layer)
    rate = getattr(layer.lora_dropout[name], "p", 0.0)
    keep = torch.empty_like(x, dtype=a.dtype).bernoulli_(1 - rate).div_(1 - rate) if rate else None
    scaling = layer.scaling[name]
    output: Tensor = _FusedLora.apply(x, base.weight, base.bias, a, b, keep, scaling, gradients)  # type: ignore[no-untyped-call]
    return output


class _FusedLora(torch.autograd.Function):
    """y = x W' + bias + scaling * (x * keep) A' B' for x [batch, length, in]; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: nn.Parameter, b: nn.Parameter,
        keep: Tensor | None, scaling: float, gradients: PerExample,
    ) -> Tensor:  # fmt: skip
        dropped = x.to(a.dtype) if keep is None else x * keep
        low = dropped @ a.T
        ctx.save_for_backward(dropped, low, weight, a, b, keep)
        ctx.scaling, ctx.gradients = scaling, gradients
        y = nn.functional.linear(x, weight, bias)
        return y.add_((low @ b.T).to(y.dtype), alpha=scaling)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outputs
        dropped, low, weight, a, b, keep = ctx.saved_tensors
        scaled = grad.to(a.dtype) * ctx.scaling
        grad_low = scaled @ b
        # Both would silently hold the last of two uses if a model applied one layer twice; none of ours does.
        ctx.gradients[a] = grad_low.mT @ dropped
        ctx.gradients[b] = scaled.mT @ low
        grad_x = None
        if ctx.needs_input_grad[0]:
            through = grad_low @ a
            grad_x = (grad @ weight).add_((through if keep is None else through * keep).to(grad.dtype))
        return grad_x, None, None, None, None, None, None, None

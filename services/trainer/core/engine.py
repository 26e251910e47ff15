"""Per-example gradients of a LoRA adapter, clipped and summed.

The ``native`` engine replaces the forward of each LoRA layer by one autograd function over the frozen weight, A and B
together. Its backward forms every example's gradient of A and B, which are small, in two batched products, so that
autograd does not form their sum a second time and no module hook keeps activations alive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from privcode.errors import StageFailed
from services.trainer.core.lora import ab, lora_layers


@dataclass(frozen=True, kw_only=True)
class ClipCounts:
    """What clipping did to one micro-batch. Private: computed from the records."""

    clipped: int
    non_finite: int


class PerExampleEngine(Protocol):
    """Turns losses of single examples into a sum of gradients in which no example has more than a bounded part."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All trainable parameters, in the order of :meth:`take_sum`."""
        ...

    def accumulate(self, losses: Tensor, *, max_grad_norm: float) -> ClipCounts:
        """Add each example's gradient, its whole vector scaled to norm ``max_grad_norm`` at most, to the sum.

        ``losses``: [batch], entry i a function of example i alone. An example whose gradient is not finite adds zero.
        """
        ...

    def take_sum(self) -> list[Tensor]:
        """The sum since the last call, one tensor a parameter, and start again from zero."""
        ...


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
        for layer in layers:
            _fuse(layer, self._gradients)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._sums)

    def accumulate(self, losses: Tensor, *, max_grad_norm: float) -> ClipCounts:
        losses.sum().backward()  # type: ignore[no-untyped-call]
        gradients = [self._gradients[parameter] for parameter in self._sums]
        self._gradients.clear()
        # In float64, where no sum of squares of finite float32 values overflows.
        norms = torch.stack(
            [torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64) for gradient in gradients]
        ).norm(dim=0)
        finite = norms.isfinite()
        factors = torch.where(finite, (max_grad_norm / norms).clamp(max=1.0), 0.0)
        for total, gradient in zip(self._sums.values(), gradients, strict=True):
            if not bool(finite.all()):
                gradient = gradient.where(finite[:, None, None], 0.0)  # 0 times NaN is NaN
            total += torch.einsum("e,eij->ij", factors.to(gradient.dtype), gradient)
        return ClipCounts(clipped=int((finite & (factors < 1)).sum()), non_finite=int((~finite).sum()))

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

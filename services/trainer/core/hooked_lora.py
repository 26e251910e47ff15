"""What the engines that build on another package's module hooks share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import count

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from privcode.errors import StageFailed
from services.trainer.core.lora import ab, lora_layers


class HookedLora:
    """The LoRA layers of ``model``, made ready for hooks on their A and B, and the sum of their clipped gradients.

    While gradients are on, LoRA dropout is drawn and A and B are in training mode, which other packages' hooks ask
    for; the rest of the model stays as it is. Raises :class:`StageFailed` (``unsupported_layer``) as
    :func:`~services.trainer.core.lora.lora_layers` does.
    """

    def __init__(self, model: PeftModel) -> None:
        layers = lora_layers(model)
        self.parameters = [parameter for layer in layers for parameter in ab(layer)]
        self.linears = [linear for layer in layers for linear in _linears(layer)]
        self._sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        # A hook keeps a layer's newest input only. Each forward pass of a layer has a number, so that a backward pass
        # that does not belong to that input is found out.
        self._numbers = count()
        self._newest: dict[LoraLinear, int] = {}
        self._reached: list[int] = []
        for layer in layers:
            layer.register_forward_pre_hook(_switch_modes)
            layer.register_forward_hook(self._mark)

    def backward(self, losses: Tensor, *, retain_graph: bool = False) -> list[Tensor]:
        """Gradient of the sum of ``losses`` by parameter; what it is for is that the package's hooks run.

        Raises :class:`StageFailed` (``unsupported_layer``) unless the graph holds the newest forward pass of every
        layer and no other: the hooks would have paired gradients with inputs of other examples.
        """
        self._reached.clear()
        before = [parameter.grad for parameter in self.parameters]
        # Not autograd.grad: it leaves out what no parameter's gradient needs, and hooks with it.
        try:
            self._set_grads([None] * len(before))
            losses.sum().backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
            gradients = [parameter.grad for parameter in self.parameters]
        finally:
            self._set_grads(before)
        known = [gradient for gradient in gradients if gradient is not None]
        if len(known) < len(self.parameters) or sorted(self._reached) != sorted(self._newest.values()):
            raise StageFailed("the losses are not of one newest pass of every LoRA layer", code="unsupported_layer")
        return known

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add to the sum, all or nothing: adding in place takes no memory."""
        for total, gradient in zip(self._sums, gradients, strict=True):
            total.add_(gradient)

    def take_sum(self) -> list[Tensor]:
        taken = self._sums
        self._sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        return taken

    def _set_grads(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def _mark(self, layer: LoraLinear, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Inside a backward pass it is gradient checkpointing that repeats the forward pass with the same input.
        if layer.disable_adapters or not output.requires_grad or torch._C._current_graph_task_id() != -1:
            return
        number = self._newest[layer] = next(self._numbers)
        output.register_hook(partial(_append, self._reached, number))  # type: ignore[no-untyped-call]


def require_single_rows(units: Tensor | None, *, unfinished: bool) -> None:
    """Raise :class:`StageFailed` (``unsupported_units``) unless each row of a micro-batch is a unit of its own."""
    if unfinished or (units is not None and len(set(units.tolist())) < len(units)):
        raise StageFailed(
            "this engine can't clip several records of one unit together: use runtime.per_example_engine native",
            code="unsupported_units",
            field="runtime.per_example_engine",
        )


def total_norms(norms: Sequence[Tensor]) -> Tensor:
    """Norm of each example's whole gradient, float64 [batch], from one [batch] of norms a parameter."""
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms]), dim=0)
    return total


def _linears(layer: LoraLinear) -> tuple[nn.Linear, nn.Linear]:
    (name,) = layer.active_adapters
    return layer.lora_A[name], layer.lora_B[name]


def _switch_modes(layer: LoraLinear, _inputs: tuple[Tensor, ...]) -> None:
    (name,) = layer.active_adapters
    layer.lora_dropout[name].train(torch.is_grad_enabled())
    for linear in _linears(layer):
        linear.train()


def _append(reached: list[int], number: int, _gradient: Tensor) -> None:
    reached.append(number)

"""Our own engine of per-example gradients, for LoRA adapters.

Each LoRA layer becomes one autograd function whose backward forms every example's gradient of A and B directly
(:mod:`services.trainer.core.fused_lora`). They are small, so that clipping needs neither a second pass nor a copy of
the model.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor, nn

from privcode.errors import StageFailed
from services.trainer.core.engine import ClipCounts, ClippingRule, add_clipped
from services.trainer.core.fused_elementwise import fuse_elementwise
from services.trainer.core.fused_lora import PerExample, fuse
from services.trainer.core.lora import ab, lora_layers


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
            fuse(layer, self._gradients)
        fuse_elementwise(model)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._sums)

    def accumulate(
        self, losses: Tensor, *, rule: ClippingRule, units: Tensor | None = None, unfinished: bool = False
    ) -> ClipCounts:
        self._gradients.clear()  # of a backward pass that was not ours
        try:
            losses.sum().backward()  # type: ignore[no-untyped-call]
            if len(self._gradients) != len(self._sums):
                raise StageFailed("the losses don't reach every trained parameter", code="unsupported_layer")
            gradients = [self._gradients[parameter] for parameter in self._sums]
        finally:
            self._gradients.clear()
        if units is None:
            units = torch.arange(len(losses), device=losses.device)
        gradients = self._joined(gradients, units)
        begun = None
        if unfinished:
            begun = [gradient[-1].clone() for gradient in gradients]
            gradients = [gradient[:-1] for gradient in gradients]
        counts = add_clipped(self._sums, gradients, rule=rule)
        self._begun = begun
        return counts

    def _joined(self, gradients: list[Tensor], units: Tensor) -> list[Tensor]:
        """The rows' gradients summed by unit, with what was begun added to the first."""
        _, rows = torch.unique_consecutive(units, return_inverse=True)
        size = int(rows[-1]) + 1
        if size < len(units):
            gradients = [
                gradient.new_zeros(size, *gradient.shape[1:]).index_add_(0, rows, gradient) for gradient in gradients
            ]
        for gradient, begun in zip(gradients, self._begun or [], strict=False):
            gradient[0] += begun
        return gradients

    def take_sum(self) -> list[Tensor]:
        taken = list(self._sums.values())
        self._sums = {parameter: torch.zeros_like(parameter) for parameter in self._sums}
        return taken

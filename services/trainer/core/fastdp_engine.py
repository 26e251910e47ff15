"""Per-example gradients by fastDP (github.com/awslabs/fast-differential-privacy), which is installed from Git.

Of fastDP these are used: the hooks that keep inputs and output gradients and compute norms (book-keeping, Bu et al.
2022, arXiv 2210.00038; mode ``MixOpt``), and the function that turns both and a factor for each example into the
clipped sum. Not used: its engine object, which fixes the clipping at construction, takes the head of the model for the
layer whose backward comes last, and draws noise from torch's global generator.
"""

from __future__ import annotations

from typing import Any, Final

from fastDP.autograd_grad_sample import add_hooks
from fastDP.supported_layers_grad_samplers import _supported_layers_norm_sample_AND_clipping
from peft import PeftModel
from torch import Tensor, nn

from privcode.errors import StageFailed
from services.trainer.core.engine import ClipCounts, ClippingRule, clip_counts
from services.trainer.core.hooked_lora import HookedLora, require_single_rows, total_norms

_, _CLIPPED_SUM = _supported_layers_norm_sample_AND_clipping[nn.Linear]
_OF_LAYER: Final = ("activations", "backprops")
_OF_WEIGHT: Final = ("norm_sample", "grad_sample")


class FastDPEngine:
    """:class:`PerExampleEngine` by book-keeping: one backward pass, and gradients of single examples only where they
    are smaller than the inputs' products. Norms and sums are float32, under autocast too."""

    def __init__(self, model: PeftModel) -> None:
        self._lora = HookedLora(model)
        for parameter in model.parameters():
            parameter.initially_requires_grad = parameter.requires_grad
        add_hooks(model, loss_reduction="sum", clipping_mode="MixOpt", block_heads=[])
        for linear in self._lora.linears:
            linear.register_forward_hook(_widen_input)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._lora.parameters)

    def accumulate(
        self, losses: Tensor, *, rule: ClippingRule, units: Tensor | None = None, unfinished: bool = False
    ) -> ClipCounts:
        require_single_rows(units, unfinished=unfinished)
        try:
            self._lora.backward(losses)
            norms = total_norms([_norms(linear, size=len(losses)) for linear in self._lora.linears])
            factors, finite = rule.factors(norms).float(), norms.isfinite()
            if not bool(finite.all()):
                for linear in self._lora.linears:
                    _zero_rows(linear, ~finite)
            self._lora.add([_clipped_sum(linear, factors) for linear in self._lora.linears])
            return clip_counts(norms, rule=rule)
        finally:
            for linear in self._lora.linears:
                _forget(linear)

    def take_sum(self) -> list[Tensor]:
        return self._lora.take_sum()


def _widen_input(linear: Any, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
    """fastDP computes in the wider type of input and output gradient."""
    linear.activations = linear.activations.to(linear.weight.dtype)


def _norms(linear: nn.Linear, *, size: int) -> Tensor:
    norms = getattr(linear.weight, "norm_sample", None)
    if not isinstance(norms, Tensor) or len(norms) != size:
        raise StageFailed("fastDP has no norm of each example for a trained parameter", code="unsupported_layer")
    return norms


def _zero_rows(linear: Any, rows: Tensor) -> None:
    """A factor of zero would not do: zero times NaN is NaN."""
    for holder, names in ((linear, _OF_LAYER), (linear.weight, _OF_WEIGHT)):
        for name in names:
            if hasattr(holder, name):
                values = getattr(holder, name)
                setattr(holder, name, values.masked_fill(rows.view(-1, *[1] * (values.dim() - 1)), 0.0))


def _clipped_sum(linear: Any, factors: Tensor) -> Tensor:
    backprops = linear.backprops.to(linear.weight.dtype) * factors[:, None, None]
    total: Tensor = _CLIPPED_SUM(linear, linear.activations, backprops, factors)
    return total


def _forget(linear: nn.Linear) -> None:
    for holder, names in ((linear, _OF_LAYER), (linear.weight, _OF_WEIGHT)):
        for name in names:
            holder.__dict__.pop(name, None)

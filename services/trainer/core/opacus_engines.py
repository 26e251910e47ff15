"""Per-example gradients by Opacus (github.com/meta-pytorch/opacus): its hooks, our clipping rule, no noise of its own.

Its hooks hold the input of every A and B until the backward pass: gradient checkpointing saves less memory than with
the native engine.
"""

from __future__ import annotations

from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from peft import PeftModel
from torch import Tensor, nn

from privcode.errors import StageFailed
from services.trainer.core.engine import ClipCounts, ClippingRule, add_clipped, clip_counts
from services.trainer.core.hooked_lora import HookedLora, require_single_rows, total_norms


class OpacusHooksEngine:
    """:class:`PerExampleEngine` with every example's gradient in memory."""

    def __init__(self, model: PeftModel) -> None:
        self._lora = HookedLora(model)
        self._hooks = _SampleHooks(model, loss_reduction="sum")

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._lora.parameters)

    def accumulate(
        self, losses: Tensor, *, rule: ClippingRule, units: Tensor | None = None, unfinished: bool = False
    ) -> ClipCounts:
        require_single_rows(units, unfinished=unfinished)
        try:
            self._lora.backward(losses)
            return _add_samples(self._lora, rule=rule, size=len(losses))
        finally:
            _forget(self._lora.linears)

    def take_sum(self) -> list[Tensor]:
        return self._lora.take_sum()


class OpacusGhostEngine:
    """:class:`PerExampleEngine` by ghost clipping (Li et al. 2021, arXiv 2110.05679): norms in one backward pass, then
    the gradient of the weighted losses in a second.

    The second pass is bounded by norms of the first, so that both have to round alike: raises :class:`StageFailed`
    (``unsupported_option``) for a model that is not held in float32 or more, and in the forward pass under autocast.
    If an example's gradient is not finite, the micro-batch is clipped from every example's gradient.
    """

    def __init__(self, model: PeftModel) -> None:
        for parameter in model.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                raise _needs_float32(f"the model is held in {parameter.dtype}".replace("torch.", ""))
        self._lora = HookedLora(model)
        for linear in self._lora.linears:
            linear.register_forward_pre_hook(_refuse_autocast)
        self._hooks = _NormHooks(model, loss_reduction="sum")

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._lora.parameters)

    def accumulate(
        self, losses: Tensor, *, rule: ClippingRule, units: Tensor | None = None, unfinished: bool = False
    ) -> ClipCounts:
        require_single_rows(units, unfinished=unfinished)
        try:
            self._lora.backward(losses, retain_graph=True)
            norms = total_norms([_of_batch(p, "_norm_sample", size=len(losses)) for p in self._lora.parameters])
            if not bool(norms.isfinite().all()):
                return self._add_finite(losses, rule=rule)
            self._hooks.disable_hooks()
            self._lora.add(self._lora.backward(losses * rule.factors(norms).to(losses.dtype)))
            return clip_counts(norms, rule=rule)
        finally:
            self._hooks.enable_hooks()
            self._hooks.whole_samples = False
            _forget(self._lora.linears)

    def take_sum(self) -> list[Tensor]:
        return self._lora.take_sum()

    def _add_finite(self, losses: Tensor, *, rule: ClippingRule) -> ClipCounts:
        """A weight of zero would not do: zero times NaN is NaN, in the sum over all examples."""
        for parameter in self._lora.parameters:
            parameter._forward_counter = 1  # type: ignore[attr-defined]
        self._hooks.whole_samples = True
        self._lora.backward(losses)
        return _add_samples(self._lora, rule=rule, size=len(losses))


class _SampleHooks(GradSampleHooks):  # type: ignore[misc]
    def capture_activations_hook(self, module: nn.Linear, *call: Any) -> None:
        _keep_newest_only(self, module)
        super().capture_activations_hook(module, *call)


class _NormHooks(GradSampleHooksFastGradientClipping):  # type: ignore[misc]
    """Norms of the examples' gradients, or with ``whole_samples`` the gradients."""

    whole_samples = False

    def capture_activations_hook(self, module: nn.Linear, *call: Any) -> None:
        _keep_newest_only(self, module)
        super().capture_activations_hook(module, *call)

    def capture_backprops_hook(self, module: Any, *call: Any, **options: Any) -> None:
        if not self.hooks_enabled:
            return
        kept = list(module.activations)  # popped by what follows, and perhaps needed a second time
        capture = GradSampleHooks if self.whole_samples else GradSampleHooksFastGradientClipping
        capture.capture_backprops_hook(self, module, *call, **options)
        module.activations = kept


def _keep_newest_only(hooks: GradSampleHooks, module: nn.Linear) -> None:
    """Before a capture: forget an earlier one, of a pass that failed or that gradient checkpointing repeats. Opacus
    would take it for a second use of the layer in one pass."""
    if hooks.hooks_enabled and torch.is_grad_enabled():
        _forget_captured(module)


def _forget_captured(linear: nn.Linear) -> None:
    for name in ("activations", "max_batch_len"):
        linear.__dict__.pop(name, None)
    linear.weight.__dict__.pop("_current_grad_sample", None)
    linear.weight._forward_counter = 0  # type: ignore[attr-defined]


def _forget(linears: list[nn.Linear]) -> None:
    """All that a backward pass left behind, whether it came to its end or not."""
    for linear in linears:
        _forget_captured(linear)
        linear.weight.__dict__.pop("_norm_sample", None)
        linear.weight.grad_sample = None  # type: ignore[attr-defined]


def _add_samples(lora: HookedLora, *, rule: ClippingRule, size: int) -> ClipCounts:
    gradients = [_of_batch(parameter, "grad_sample", size=size) for parameter in lora.parameters]
    part = {parameter: torch.zeros_like(parameter) for parameter in lora.parameters}
    counts = add_clipped(part, gradients, rule=rule)
    lora.add(list(part.values()))
    return counts


def _of_batch(parameter: nn.Parameter, name: str, *, size: int) -> Tensor:
    found = getattr(parameter, name, None)
    if not isinstance(found, Tensor) or len(found) != size:
        raise StageFailed("Opacus has no gradient of each example for a trained parameter", code="unsupported_layer")
    return found


def _refuse_autocast(_linear: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
    if torch.is_grad_enabled() and torch.is_autocast_enabled(inputs[0].device.type):
        raise _needs_float32("the forward pass is under autocast")


def _needs_float32(found: str) -> StageFailed:
    return StageFailed(
        f"runtime.per_example_engine opacus_ghost needs float32, and {found}",
        code="unsupported_option",
        field="runtime.per_example_engine",
        value="opacus_ghost",
    )

"""What an engine of per-example gradients has to do: turn losses into a clipped sum of gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from privcode.specs import Clipping

# The stability constant of automatic clipping (Bu et al. 2023, arXiv 2206.07136).
_AUTOMATIC_GAMMA: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class ClippingRule:
    """How a whole gradient of norm |g| is scaled: ``flat`` by min(1, C / |g|), ``automatic`` by C / (|g| + 0.01), with
    C = ``max_grad_norm``. Either way no norm is above C afterwards."""

    max_grad_norm: float
    style: Clipping

    def factors(self, norms: Tensor) -> Tensor:
        """Factor for each of ``norms`` [units], in their dtype; 0 for a norm that is not finite."""
        if self.style == "automatic":
            factors = self.max_grad_norm / (norms + _AUTOMATIC_GAMMA)
        else:
            factors = (self.max_grad_norm / norms).clamp(max=1.0)
        return torch.where(norms.isfinite(), factors, 0.0)


@dataclass(frozen=True, kw_only=True)
class ClipCounts:
    """What clipping did to one micro-batch: units whose gradient was longer than ``max_grad_norm``, and units whose
    gradient was not finite. Private: computed from the records."""

    clipped: int = 0
    non_finite: int = 0

    def __add__(self, other: ClipCounts) -> ClipCounts:
        return ClipCounts(clipped=self.clipped + other.clipped, non_finite=self.non_finite + other.non_finite)


class PerExampleEngine(Protocol):
    """Turns losses of single examples into a sum of gradients in which no unit has more than a bounded part."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All trainable parameters, in the order of :meth:`take_sum`."""
        ...

    def accumulate(
        self, losses: Tensor, *, rule: ClippingRule, units: Tensor | None = None, unfinished: bool = False
    ) -> ClipCounts:
        """Add each unit's gradient, scaled as ``rule`` says, to the sum.

        ``losses``: [batch], entry i a function of example i alone. ``units``: int64 [batch], not decreasing; the
        gradients of rows with equal numbers are summed before they are clipped. None: each row is a unit.
        ``unfinished``: the last unit has more rows, and the next call begins with them. A unit whose gradient is not
        finite adds zero.

        If this raises, the sum is as it was before the call. Engines that can't join rows raise
        :class:`~privcode.errors.StageFailed` (``unsupported_units``).
        """
        ...

    def take_sum(self) -> list[Tensor]:
        """The sum since the last call, one float32 tensor a parameter, and start again from zero."""
        ...


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Norm of each unit's whole gradient, float64 [units], from one tensor [units, ...] a parameter.

    In float64 no sum of squares of finite float32 values overflows.
    """
    each = [torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64) for gradient in gradients]
    norms: Tensor = torch.linalg.vector_norm(torch.stack(each), dim=0)
    return norms


def add_clipped(sums: Mapping[nn.Parameter, Tensor], gradients: Sequence[Tensor], *, rule: ClippingRule) -> ClipCounts:
    """Add per-unit ``gradients`` (one [units, ...] a parameter, in the order of ``sums``) to ``sums``, clipped."""
    norms = gradient_norms(gradients)
    factors = rule.factors(norms)
    finite = norms.isfinite()
    all_finite = bool(finite.all())
    parts = []
    for total, gradient in zip(sums.values(), gradients, strict=True):
        flat = gradient.flatten(1).to(total.dtype)
        if not all_finite:
            flat = flat.where(finite[:, None], 0.0)  # 0 times NaN is NaN
        parts.append(factors.to(flat.dtype) @ flat)
    # Only now, when nothing can run out of memory any more.
    for total, part in zip(sums.values(), parts, strict=True):
        total.view(-1).add_(part)
    return clip_counts(norms, rule=rule)


def clip_counts(norms: Tensor, *, rule: ClippingRule) -> ClipCounts:
    finite = norms.isfinite()
    return ClipCounts(clipped=int((finite & (norms > rule.max_grad_norm)).sum()), non_finite=int((~finite).sum()))

"""Cross-entropy and KL divergence straight from hidden states, without the logits of all positions in memory.

The head is applied to a slice of positions at a time, and the gradient for their hidden states is formed on the spot:
softmax - one-hot for the cross-entropy, softmax - softmax_base for KL(base || p). The backward pass only scales it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

# Logits in memory at a time: 16 MiB of them.
LOGITS_AT_ONCE: Final = 2**22


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is wanted at ``n`` positions, of which the first ``s`` have the KL term.

    ``tokens``: int64 [n]. ``ce_weights``: float32 [n]. ``kl_weights``: float32 [s]. ``teacher``: [s, width], hidden
    states of the base model.
    """

    tokens: Tensor
    ce_weights: Tensor
    kl_weights: Tensor
    teacher: Tensor


def head_loss(hidden: Tensor, head: nn.Linear, targets: Targets) -> Tensor:
    """ce_weight * cross-entropy + kl_weight * KL(base || p) of each position, float32 [n], with a graph to ``hidden``
    [n, width]."""
    losses: Tensor = _HeadLoss.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
    return losses


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Linear, targets: Targets) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(1, LOGITS_AT_ONCE // head.out_features)
        first = len(targets.teacher)
        starts = [*range(0, first, size), *range(first, len(hidden), size), len(hidden)]
        for start, end in itertools.pairwise(starts):
            own = slice(start, end)
            losses[own] = _slice(
                hidden[own],
                head,
                Targets(
                    tokens=targets.tokens[own],
                    ce_weights=targets.ce_weights[own],
                    kl_weights=targets.kl_weights[own],
                    teacher=targets.teacher[own],
                ),
                gradient=None if gradient is None else gradient[own],
            )
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype).unsqueeze(-1), None, None


def _slice(hidden: Tensor, head: nn.Linear, targets: Targets, *, gradient: Tensor | None) -> Tensor:
    """Losses of positions that all have the KL term, or none of them; their gradient is written to ``gradient``."""
    log_p = torch.log_softmax(head(hidden).float(), dim=-1)
    chosen = targets.tokens.unsqueeze(-1)
    losses = -log_p.gather(1, chosen).squeeze(-1) * targets.ce_weights
    weights, base = targets.ce_weights, None
    if len(targets.teacher):
        log_base = torch.log_softmax(head(targets.teacher).float(), dim=-1)
        base = log_base.exp()
        losses += torch.linalg.vecdot(base, log_base.sub_(log_p)) * targets.kl_weights
        weights = weights + targets.kl_weights
    if gradient is not None:
        error = log_p.exp_().mul_(weights.unsqueeze(-1))
        error.scatter_add_(1, chosen, -targets.ce_weights.unsqueeze(-1))
        if base is not None:
            error.addcmul_(base, targets.kl_weights.unsqueeze(-1), value=-1)
        gradient.copy_(error.to(head.weight.dtype) @ head.weight)
    return losses

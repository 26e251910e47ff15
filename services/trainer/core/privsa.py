"""The training loss: cross-entropy with privacy-free syntax-aware regularisation (PrivSA; arXiv 2512.05459).

    loss_i = CE_i + lambda(t) * KL_i
    CE_i   = mean over the answer tokens of example i of -log p_dp(token)
    KL_i   = mean over the structural tokens of example i of KL(p_base || p_dp)

Every term is a function of one example alone, so that clipping an example's gradient bounds its whole influence.
"""

from __future__ import annotations

import math

import torch
from peft import PeftModel
from torch import Tensor

from privcode.errors import StageFailed
from privcode.specs import PrivSASpec
from services.trainer.core.head_loss import Targets, head_loss
from services.trainer.core.sequences import Batch
from services.trainer.core.teacher import InlineTeacher, Teacher, hidden_states

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def lambda_at(step: int, *, spec: PrivSASpec) -> float:
    """lambda(t) at optimizer step ``step`` (from 0); the exponential falls every 20 of the paper's micro-batches."""
    if spec.schedule == "off":
        return 0.0
    if spec.schedule == "constant":
        return spec.lambda_max
    t = step * spec.nominal_accumulation
    return spec.lambda_min + (spec.lambda_max - spec.lambda_min) * math.exp(-spec.alpha * (t // 20) * 20)


def per_example_loss(model: PeftModel, batch: Batch, *, kl_weight: float, teacher: Teacher | None = None) -> Tensor:
    """loss_i of each example, float32 [batch], with a graph to the adapter. ``kl_weight`` is lambda(t).

    The head is applied where a term needs it and nowhere else. ``teacher``: where p_base comes from, by default the
    same network with its adapter off, asked anew.
    """
    structure = batch.structure if kl_weight else torch.zeros_like(batch.structure)
    structural = structure.nonzero()
    rows, positions = torch.cat([structural, (batch.answer & ~structure).nonzero()]).T
    hidden = hidden_states(model, batch.token_ids)[rows, positions - 1]
    base = hidden.new_empty(0, hidden.shape[-1])
    if len(structural):
        base = (teacher or InlineTeacher(model))(batch).to(hidden.dtype)
    losses = head_loss(
        hidden,
        model.get_base_model().get_output_embeddings(),
        Targets(
            tokens=batch.token_ids[rows, positions],
            ce_weights=_shares(rows, len(batch)),
            kl_weights=kl_weight * _shares(structural[:, 0], len(batch)),
            teacher=base,
        ),
    )
    return losses.new_zeros(len(batch)).index_add(0, rows, losses)


def require_plain_head(model: PeftModel) -> None:
    """Raise :class:`StageFailed` (``unsupported_model``) where logits are more than head times hidden state."""
    config = model.get_base_model().config
    for name in _LOGIT_TRANSFORMS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise StageFailed(f"the model changes its logits by {name}: unsupported", code="unsupported_model")


def _shares(rows: Tensor, size: int) -> Tensor:
    """1 / (entries with the same row number) for each entry: weights that make sums means."""
    return 1 / torch.bincount(rows, minlength=size)[rows].float()

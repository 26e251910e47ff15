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
from services.trainer.core.sequences import Batch

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def lambda_at(step: int, *, spec: PrivSASpec) -> float:
    """lambda(t) at optimizer step ``step`` (from 0); the exponential falls every 20 of the paper's micro-batches."""
    if spec.schedule == "off":
        return 0.0
    if spec.schedule == "constant":
        return spec.lambda_max
    t = step * spec.nominal_accumulation
    return spec.lambda_min + (spec.lambda_max - spec.lambda_min) * math.exp(-spec.alpha * (t // 20) * 20)


def per_example_loss(model: PeftModel, batch: Batch, *, kl_weight: float) -> Tensor:
    """loss_i of each example, float32 [batch], with a graph to the adapter. ``kl_weight`` is lambda(t).

    ``p_base`` is the same network with the adapter off. The head is applied where a term needs it and nowhere else.
    """
    rows, positions = batch.answer.nonzero(as_tuple=True)
    log_p = _log_probabilities(model, _hidden(model, batch.token_ids)[rows, positions - 1])
    picked = log_p.gather(1, batch.token_ids[rows, positions, None]).squeeze(1)
    loss = _mean_by_row(-picked, rows, len(batch))
    if kl_weight > 0 and bool(batch.structure.any()):
        structural = batch.structure[rows, positions]
        divergence = _divergence(_base_log_probabilities(model, batch), log_p[structural])
        loss = loss + kl_weight * _mean_by_row(divergence, rows[structural], len(batch))
    return loss


def require_plain_head(model: PeftModel) -> None:
    """Raise :class:`StageFailed` (``unsupported_model``) where logits are more than head times hidden state."""
    config = model.get_base_model().config
    for name in _LOGIT_TRANSFORMS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise StageFailed(f"the model changes its logits by {name}: unsupported", code="unsupported_model")


def _hidden(model: PeftModel, token_ids: Tensor) -> Tensor:
    # No attention mask: attention is causal and padding is on the right.
    hidden: Tensor = model.get_base_model().base_model(input_ids=token_ids, use_cache=False).last_hidden_state
    return hidden


def _log_probabilities(model: PeftModel, hidden: Tensor) -> Tensor:
    return torch.log_softmax(model.get_base_model().get_output_embeddings()(hidden).float(), dim=-1)


@torch.no_grad()
def _base_log_probabilities(model: PeftModel, batch: Batch) -> Tensor:
    """[structural tokens, vocabulary], in the order of ``batch.structure.nonzero()``."""
    has_structure = batch.structure.any(dim=1)
    rows, positions = batch.structure[has_structure].nonzero(as_tuple=True)
    with model.disable_adapter():
        hidden = _hidden(model, batch.token_ids[has_structure])
    return _log_probabilities(model, hidden[rows, positions - 1])


def _divergence(log_base: Tensor, log_p: Tensor) -> Tensor:
    """KL(base || p) of each row."""
    return torch.nn.functional.kl_div(log_p, log_base, reduction="none", log_target=True).sum(dim=-1)


def _mean_by_row(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """Mean of the values that belong to each row; 0 for a row without any."""
    sums = values.new_zeros(size).index_add(0, rows, values)
    return sums / torch.bincount(rows, minlength=size).clamp(min=1)

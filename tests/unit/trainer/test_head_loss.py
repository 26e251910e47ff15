"""Losses and gradients straight from hidden states, against the logits of all positions and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.trainer.core import head_loss as module
from services.trainer.core.head_loss import Targets, head_loss

POSITIONS, WIDTH, VOCABULARY = 11, 6, 17


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)


def targets(structural: int) -> Targets:
    generator = torch.Generator().manual_seed(1)
    return Targets(
        tokens=torch.randint(VOCABULARY, (POSITIONS,), generator=generator),
        ce_weights=torch.rand(POSITIONS, generator=generator),
        kl_weights=1 + 5 * torch.rand(structural, generator=generator),
        teacher=torch.randn(structural, WIDTH, generator=generator),
    )


def by_definition(hidden: Tensor, head: nn.Linear, wanted: Targets) -> Tensor:
    logits = head(hidden)
    losses = functional.cross_entropy(logits, wanted.tokens, reduction="none") * wanted.ce_weights
    structural = len(wanted.teacher)
    divergence = functional.kl_div(
        logits[:structural].log_softmax(-1), head(wanted.teacher).softmax(-1), reduction="none"
    ).sum(-1)
    return torch.cat([losses[:structural] + divergence * wanted.kl_weights, losses[structural:]])


# A slice of all, of four (which cuts the structural ones apart) and of one position.
@pytest.mark.parametrize("at_once", [2**23, 4 * VOCABULARY, 1])
@pytest.mark.parametrize("structural", [0, 5, POSITIONS])
def test_losses_and_gradients_are_the_definitions(
    head: nn.Linear, monkeypatch: pytest.MonkeyPatch, structural: int, at_once: int
) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
    wanted = targets(structural)
    hidden = torch.randn(POSITIONS, WIDTH).requires_grad_()
    pull = torch.linspace(-1, 3, POSITIONS)  # each position's loss counts differently
    found = []
    for compute in (head_loss, by_definition):
        losses = compute(hidden, head, wanted)
        (gradient,) = torch.autograd.grad((losses * pull).sum(), hidden)
        found.append((losses.detach(), gradient))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def test_no_more_logits_than_allowed_are_made(head: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 3 * VOCABULARY)
    sizes: list[int] = []
    head.register_forward_hook(lambda _module, _inputs, logits: sizes.append(len(logits)))
    head_loss(torch.randn(POSITIONS, WIDTH, requires_grad=True), head, targets(4))
    assert max(sizes) == 3
    assert sum(sizes) == POSITIONS + 4


def test_without_gradients_there_are_losses_all_the_same(head: nn.Linear) -> None:
    hidden = torch.randn(POSITIONS, WIDTH)
    wanted = targets(2)
    with torch.no_grad():
        losses = head_loss(hidden, head, wanted)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, by_definition(hidden, head, wanted))

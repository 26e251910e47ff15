from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel
from tiny_lora import batch_of
from transformers import LlamaForCausalLM

from privcode.errors import StageFailed
from privcode.specs import LoraSpec, PrivSASpec
from services.trainer.core.lora import add_adapter, trainable
from services.trainer.core.privsa import lambda_at, per_example_loss, require_plain_head
from services.trainer.core.sequences import TokenSequence

CPU = torch.device("cpu")


def test_loss_is_the_definition(adapted: PeftModel, sequences: list[TokenSequence]) -> None:
    weight = 3.0
    found = per_example_loss(adapted, batch_of(sequences), kl_weight=weight)
    for sequence, loss in zip(sequences, found, strict=True):
        ids = sequence.token_ids[None]
        with torch.no_grad():
            log_p = adapted(input_ids=ids).logits[0].log_softmax(-1)
            with adapted.disable_adapter():
                log_base = adapted(input_ids=ids).logits[0].log_softmax(-1)
        answer = [t for t in range(len(sequence)) if sequence.answer[t]]
        structure = [t for t in range(len(sequence)) if sequence.structure[t]]
        cross_entropy = -sum(float(log_p[t - 1, ids[0, t]]) for t in answer) / len(answer)
        kl = [float((log_base[t - 1].exp() * (log_base[t - 1] - log_p[t - 1])).sum()) for t in structure]
        expected = cross_entropy + weight * (sum(kl) / len(kl) if kl else 0.0)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_an_example_without_structure_has_no_kl(adapted: PeftModel, sequences: list[TokenSequence]) -> None:
    batch = batch_of(sequences)
    plain = per_example_loss(adapted, batch, kl_weight=0.0)
    regularised = per_example_loss(adapted, batch, kl_weight=100.0)
    without = torch.tensor([not bool(sequence.structure.any()) for sequence in sequences])
    assert without.any()
    assert torch.equal(plain[without], regularised[without])
    assert bool((regularised > plain)[~without].all())


def test_losses_depend_on_their_own_example_only(adapted: PeftModel, sequences: list[TokenSequence]) -> None:
    others = sequences[2]
    for kl_weight in (0.0, 50.0):
        before = per_example_loss(adapted, batch_of(sequences[:2]), kl_weight=kl_weight)
        after = per_example_loss(adapted, batch_of([sequences[0], others]), kl_weight=kl_weight)
        assert float(before[0]) == pytest.approx(float(after[0]), rel=1e-5)
        assert float(before[1]) != pytest.approx(float(after[1]), rel=1e-5)
        parameters = list(trainable(adapted).values())
        first = torch.autograd.grad(before[0], parameters)
        second = torch.autograd.grad(after[0], parameters)
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_kl_term_alone_moves_the_adapter(adapted: PeftModel, sequences: list[TokenSequence]) -> None:
    batch = batch_of(sequences[:2])

    def kl() -> torch.Tensor:
        both = per_example_loss(adapted, batch, kl_weight=1.0)
        return (both - per_example_loss(adapted, batch, kl_weight=0.0)).sum()

    optimizer = torch.optim.SGD(trainable(adapted).values(), lr=0.01)
    start = kl()
    start.backward()
    assert any(bool(parameter.grad.abs().max() > 1e-4) for parameter in trainable(adapted).values())
    optimizer.step()
    assert float(kl()) < float(start)


def test_a_new_adapter_is_the_base_model(llama: LlamaForCausalLM, sequences: list[TokenSequence]) -> None:
    model = add_adapter(llama, LoraSpec(rank=2, alpha=4.0, target_modules=("q_proj",)), seed=0)
    batch = batch_of(sequences)
    plain = per_example_loss(model, batch, kl_weight=0.0)
    torch.testing.assert_close(per_example_loss(model, batch, kl_weight=1.0), plain, rtol=0, atol=1e-5)


def test_lambda_falls_in_steps_of_twenty_micro_batches() -> None:
    spec = PrivSASpec()
    t = [step * 16 // 20 * 20 for step in range(100)]
    for step in (0, 1, 2, 50, 99):
        assert lambda_at(step, spec=spec) == pytest.approx(0.1 + 999.9 * math.exp(-0.01 * t[step]))
    assert lambda_at(0, spec=spec) == lambda_at(1, spec=spec) == 1000.0
    assert lambda_at(99, spec=spec) == pytest.approx(0.1, abs=1e-3)
    assert lambda_at(7, spec=PrivSASpec(lambda_max=0, lambda_min=0)) == 0.0
    assert lambda_at(7, spec=PrivSASpec(lambda_max=5, lambda_min=5)) == 5.0


def test_the_ablations_of_the_schedule() -> None:
    assert [lambda_at(step, spec=PrivSASpec(schedule="constant")) for step in (0, 50)] == [1000.0, 1000.0]
    assert [lambda_at(step, spec=PrivSASpec(schedule="off")) for step in (0, 50)] == [0.0, 0.0]


def test_a_head_with_soft_capping_is_refused(adapted: PeftModel) -> None:
    require_plain_head(adapted)
    adapted.get_base_model().config.final_logit_softcapping = 30.0
    with pytest.raises(StageFailed, match="final_logit_softcapping") as refused:
        require_plain_head(adapted)
    assert refused.value.code == "unsupported_model"

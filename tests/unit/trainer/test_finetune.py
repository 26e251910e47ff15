"""Fine-tuning without privacy: our fused layers against plain peft."""

from __future__ import annotations

import copy

import torch
from peft import PeftModel

from privcode.specs import FinetuneSpec, LoraSpec
from services.trainer.core.finetune import finetune
from services.trainer.core.lora import trainable
from services.trainer.core.sequences import TokenSequence

SPEC = FinetuneSpec(
    lora=LoraSpec(rank=2, alpha=4.0, target_modules=("q_proj",)),
    steps=4, batch=5, learning_rate=1e-2, weight_decay=0.1, warmup_steps=2, seq_length=160, seed=3,
)  # fmt: skip
# Two steps of linear warm-up, then the cosine down from its top.
LEARNING_RATES = [0.5, 1.0, 1.0, 0.5]


def plain(model: PeftModel, sequences: list[TokenSequence]) -> None:
    """The same steps by peft's own layers, the model's own logits and one row at a time."""
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.0, weight_decay=SPEC.weight_decay)
    for step in range(SPEC.steps):
        # A batch as large as the data: every step sees each row once, in whatever order.
        for group in optimizer.param_groups:
            group["lr"] = SPEC.learning_rate * LEARNING_RATES[step]
        for sequence in sequences:
            ids = sequence.token_ids[None]
            labels = ids[0].where(sequence.answer, -100)
            logits = model(input_ids=ids).logits[0, :-1]
            (torch.nn.functional.cross_entropy(logits, labels[1:]) / len(sequences)).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_fused_layers_train_as_plain_peft_does(adapted: PeftModel, sequences: list[TokenSequence]) -> None:
    theirs = copy.deepcopy(adapted)
    before = {name: parameter.detach().clone() for name, parameter in trainable(adapted).items()}
    done: list[int] = []
    finetune(adapted, sequences, spec=SPEC, micro_batch=2, on_step=done.append)
    plain(theirs, sequences)
    assert done == [1, 2, 3, 4]
    for name, parameter in trainable(theirs).items():
        torch.testing.assert_close(trainable(adapted)[name], parameter, rtol=1e-3, atol=1e-4)
        assert not torch.equal(parameter, before[name])

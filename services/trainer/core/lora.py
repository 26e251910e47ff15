"""LoRA adapters: what is trained, and what an adapter's folder tells."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import PreTrainedModel

from privcode.errors import StageFailed
from privcode.specs import LoraSpec


def add_adapter(model: PreTrainedModel, lora: LoraSpec, *, seed: int) -> PeftModel:
    """Freeze the model and give it a LoRA adapter with random A and zero B; all of it in evaluation mode.

    Raises :class:`StageFailed` (``unsupported_model``) if the model lacks one of the target modules.
    """
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if missing := [module for module in lora.target_modules if module not in names]:
        raise StageFailed(f"the model has no module {', '.join(missing)} to adapt", code="unsupported_model")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config).eval()  # peft's new layers come in training mode


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def lora_layers(model: nn.Module) -> list[LoraLinear]:
    """The model's LoRA layers, after a check that nothing else is trained and no example sees another.

    Raises :class:`StageFailed` (``unsupported_layer``) for a trainable parameter that is not the A or B of a LoRA
    linear layer, and for batch normalisation, whose output for one example depends on the others.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise StageFailed(f"{name} is batch normalisation: examples would mix", code="unsupported_layer")
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    known = {id(parameter) for layer in layers for parameter in ab(layer)}
    for name, parameter in trainable(model).items():
        if id(parameter) not in known:
            raise StageFailed(f"{name} can't be trained with privacy", code="unsupported_layer")
    return layers


def ab(layer: LoraLinear) -> tuple[nn.Parameter, nn.Parameter]:
    """A [rank, in] and B [out, rank] of the layer's one adapter."""
    (name,) = layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def save_adapter(model: PeftModel, folder: Path, *, base: str) -> None:
    """``adapter_model.safetensors`` and ``adapter_config.json``, which names the base model by its reference ``base``
    and not by the path it was loaded from."""
    (config,) = model.peft_config.values()
    config.base_model_name_or_path = base
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card, with the base model's local path

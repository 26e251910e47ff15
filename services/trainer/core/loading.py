"""The frozen base model in the form the run asks for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from privcode.errors import StageFailed

BaseDtype = Literal["float32", "bfloat16", "int8"]


def load_base(path_or_id: str | Path, *, dtype: BaseDtype) -> PreTrainedModel:
    """The causal language model in evaluation mode, on the GPU if there is one.

    ``int8``: linear layers are quantised by bitsandbytes (LLM.int8(), arXiv 2208.07339), the rest is bfloat16. Raises
    :class:`StageFailed` (``unsupported_option``) for it where there is no GPU or no bitsandbytes.
    """
    if dtype == "int8":
        _require_int8()
        quantised: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path_or_id,
            dtype=torch.bfloat16,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
            device_map={"": torch.cuda.current_device()},
        )
        return quantised.eval()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path_or_id, dtype=getattr(torch, dtype))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def checkpoint_gradients(model: PeftModel) -> None:
    """Keep only the decoder layers' inputs for the backward pass and compute the rest once more.

    transformers does so in training mode alone: the layers' own flag is set, not that of the modules in them, so that
    no dropout of the base model comes to life. Raises :class:`StageFailed` (``unsupported_option``) for a model that
    has no such layers.
    """
    base = model.get_base_model()
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise StageFailed(
            f"runtime.gradient_checkpointing: {base.config.model_type} models can't do it", code="unsupported_option"
        )
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        layer.training = True


def _require_int8() -> None:
    for there, what in (
        (torch.cuda.is_available(), "a CUDA device"),
        (importlib.util.find_spec("bitsandbytes") is not None, "the package bitsandbytes"),
    ):
        if not there:
            raise StageFailed(f"runtime.base_dtype: int8 needs {what}", code="unsupported_option")

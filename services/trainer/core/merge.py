"""An adapter and its base model become one model that any engine can load."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel

from lm.models import load_model, load_tokenizer


def merge(base: str | Path, adapter: Path, *, into: Path) -> None:
    """Write the merged weights, the tokenizer and the chat template to ``into``, in the base's stored dtype."""
    merged = merged_model(load_model(base), adapter)
    stored = AutoConfig.from_pretrained(base).dtype
    if stored is not None:
        merged = merged.to(stored)
    merged.save_pretrained(into)
    load_tokenizer(base).save_pretrained(into)


def merged_model(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with W + scaling * B A in place of W. Raises ``ValueError`` where that is not finite."""
    merged: PreTrainedModel = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    return merged

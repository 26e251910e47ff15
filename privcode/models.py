"""Model references: which names a spec may use, and what is known of each model before it is loaded.

A reference is a name of :data:`CATALOGUE` (carried by a PyPI package, or a hub id of the paper), or ``local/NAME``: the
folder ``NAME`` below the configured models directory. Anything else is refused at submission.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from privcode.errors import InvalidInput
from privcode.specs import LoraSpec

LOCAL_PREFIX: Final = "local/"


class ModelShape(BaseModel):
    """The widths that parameter counts and memory depend on, named as in a transformers ``config.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None = None
    vocab_size: int
    tie_word_embeddings: bool = False

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * (self.head_dim or self.hidden_size // self.num_attention_heads)

    @property
    def key_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_key_value_heads * (self.head_dim or self.hidden_size // self.num_attention_heads)

    @property
    def linear_parameters(self) -> int:
        """Parameters of the layers' linear modules: nearly all that there are besides embeddings and head."""
        attention = 2 * self.hidden_size * (self.query_size + self.key_size)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    def lora_parameters(self, lora: LoraSpec) -> int:
        """Number of trainable parameters: rank * (in + out) for each target module of each layer."""
        query, key = self.query_size, self.key_size
        widths = {
            "q_proj": self.hidden_size + query,
            "k_proj": self.hidden_size + key,
            "v_proj": self.hidden_size + key,
            "o_proj": query + self.hidden_size,
            "gate_proj": self.hidden_size + self.intermediate_size,
            "up_proj": self.hidden_size + self.intermediate_size,
            "down_proj": self.intermediate_size + self.hidden_size,
        }
        return self.num_hidden_layers * lora.rank * sum(widths[module] for module in lora.target_modules)


class ModelInfo(BaseModel):
    model_config = ConfigDict(frozen=True)

    reference: str
    source: Literal["package", "hub", "local"]
    kind: Literal["causal", "encoder"]
    licence: str
    shape: ModelShape | None = None


def _causal(
    reference: str,
    source: Literal["package", "hub"],
    licence: str,
    shape: tuple[int, int, int, int, int, int],
    *,
    head_dim: int | None = None,
    tied: bool = False,
) -> ModelInfo:
    """``shape``: layers, hidden size, intermediate size, attention heads, key-value heads, vocabulary."""
    layers, hidden, intermediate, heads, key_value_heads, vocabulary = shape
    return ModelInfo(
        reference=reference,
        source=source,
        kind="causal",
        licence=licence,
        shape=ModelShape(
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            head_dim=head_dim,
            vocab_size=vocabulary,
            tie_word_embeddings=tied,
        ),
    )


_MODELS: Final = (
    _causal("smollm2-135m-instruct", "package", "Apache-2.0", (30, 576, 1536, 9, 3, 49152), tied=True),
    ModelInfo(reference="all-minilm-l6-v2", source="package", kind="encoder", licence="Apache-2.0"),
    _causal("Qwen/Qwen2.5-Coder-1.5B", "hub", "Apache-2.0", (28, 1536, 8960, 12, 2, 151936), tied=True),
    _causal("Qwen/Qwen2.5-Coder-7B", "hub", "Apache-2.0", (28, 3584, 18944, 28, 4, 152064)),
    _causal("deepseek-ai/deepseek-coder-6.7b-base", "hub", "DeepSeek", (32, 4096, 11008, 32, 32, 32256)),
    _causal("google/codegemma-7b", "hub", "Gemma", (28, 3072, 24576, 16, 16, 256000), head_dim=256, tied=True),
    _causal("Qwen/CodeQwen1.5-7B", "hub", "Tongyi Qianwen", (32, 4096, 13440, 32, 4, 92416)),
    _causal("meta-llama/Llama-3.1-8B-Instruct", "hub", "Llama 3.1", (32, 4096, 14336, 32, 8, 128256)),
    ModelInfo(reference="roberta-large", source="hub", kind="encoder", licence="MIT"),
)

CATALOGUE: Final[Mapping[str, ModelInfo]] = MappingProxyType({info.reference: info for info in _MODELS})


def _local(name: str, models_dir: Path) -> ModelInfo | None:
    if not name or "/" in name or name.startswith("."):
        return None
    try:
        config = json.loads((models_dir / name / "config.json").read_bytes())
        shape = ModelShape.model_validate(config)
    except (OSError, ValueError, ValidationError):
        return None
    kind: Literal["causal", "encoder"] = (
        "causal" if any("CausalLM" in name for name in config.get("architectures") or ()) else "encoder"
    )
    return ModelInfo(reference=LOCAL_PREFIX + name, source="local", kind=kind, licence="unknown", shape=shape)


def known_models(models_dir: Path) -> list[ModelInfo]:
    """The catalogue and every usable folder of ``models_dir``."""
    names = sorted(path.name for path in models_dir.iterdir()) if models_dir.is_dir() else []
    return [*CATALOGUE.values(), *(info for name in names if (info := _local(name, models_dir)))]


def model_info(reference: str, *, models_dir: Path, field: str = "model") -> ModelInfo:
    """What is known of a model. Raises :class:`InvalidInput` (``unknown_model``) for any other reference."""
    info = CATALOGUE.get(reference)
    if info is None and reference.startswith(LOCAL_PREFIX):
        info = _local(reference.removeprefix(LOCAL_PREFIX), models_dir)
    if info is None:
        raise InvalidInput(
            f"{field}: no model {reference!r} is known; GET /v1/models lists those that are",
            code="unknown_model", field=field, value=reference,
        )  # fmt: skip
    return info

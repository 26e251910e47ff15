"""Named defaults for a job. A request names a preset and overrides what it wants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from privcode.errors import InvalidInput
from privcode.recipes import RECIPES, Recipe
from privcode.specs import JobSpec

_ALL_LINEAR: Final = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_PAPER_LORA: Final = {"rank": 16, "alpha": 32, "dropout": 0.05, "target_modules": _ALL_LINEAR}

# The paper's values (arXiv 2512.05459, section 6 and its replication package).
PAPER: Final[dict[str, Any]] = {
    "recipe": "privcode",
    "prompt_template": "qa",
    "privacy": {
        "target_epsilon": 4.0,
        "target_delta": 1e-5,
        "max_grad_norm": 1.0,
        "expected_batch": 256,
        "steps": 100,
    },
    "sanitize": {
        "model": "Qwen/Qwen2.5-Coder-1.5B",
        "lora": _PAPER_LORA,
        "learning_rate": 5e-6,
        "weight_decay": 0.05,
        "warmup_steps": 10,
        "seq_length": 1024,
    },
    "synthesize": {"max_new_tokens": 2048},
    "round_trip": {
        "describer": "meta-llama/Llama-3.1-8B-Instruct",
        "scorer": "roberta-large",
        "samples": 20,
        "temperature": 0.8,
        "max_new_tokens": 200,
        "tau": 0.88,
    },
    "boost": {
        "model": "Qwen/Qwen2.5-Coder-7B",
        "lora": _PAPER_LORA,
        "steps": 100,
        "batch": 64,
        "learning_rate": 5e-6,
        "warmup_steps": 10,
        "seq_length": 1024,
    },
    "evaluate": {"max_new_tokens": 768},
    "audit": {"prompts": 128, "samples_per_prompt": 10},
}

# The whole recipe in minutes on two CPU cores. Rank 1 on q and v keeps the noise small against the signal.
DEMO: Final[dict[str, Any]] = {
    "recipe": "privcode",
    "prompt_template": "chat",
    "privacy": {
        "target_epsilon": 4.0,
        "target_delta": 1e-5,
        "max_grad_norm": 1.0,
        "expected_batch": 16,
        "steps": 4,
    },
    "sanitize": {
        "model": "smollm2-135m-instruct",
        "lora": {"rank": 1, "alpha": 2, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "seq_length": 256,
    },
    "synthesize": {"max_prompts": 32, "max_new_tokens": 128},
    "execute": {"time_limit_s": 5.0},
    "round_trip": {
        "describer": "smollm2-135m-instruct",
        "scorer": "all-minilm-l6-v2",
        "samples": 2,
        "max_new_tokens": 64,
        "tau": 0.5,
    },
    "boost": {
        "model": "smollm2-135m-instruct",
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.0, "target_modules": _ALL_LINEAR},
        "steps": 5,
        "batch": 8,
        "learning_rate": 1e-4,
        "seq_length": 256,
    },
    "evaluate": {"limit": 20, "max_new_tokens": 160},
    "audit": {"canary_rate": 1, "prompts": 16, "samples_per_prompt": 2, "max_new_tokens": 32},
    "runtime": {"checkpoint_every": 2},
}

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"demo": DEMO, "paper": PAPER})


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


# Top-level fields that a spec may lack.
_OPTIONAL: Final = frozenset(name for name, field in JobSpec.model_fields.items() if field.default is None)


def resolve(request: Mapping[str, Any]) -> JobSpec:
    """The complete spec of a request: its preset's values, overridden by its own.

    What else is filled in: the recipe's schedule of PrivSA; and where a recipe trains the premium model with privacy
    and the request names a preset but no ``sanitize.model``, that is ``boost.model``. A preset's sections that the
    recipe does not use are left out; the request's own are refused.

    Raises :class:`InvalidInput` (``unknown_preset``, ``schedule_of_recipe``, ``models_differ``), or pydantic's
    ``ValidationError`` whose locations are the request's field paths.
    """
    own = dict(request)
    preset = own.pop("preset", None)
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise InvalidInput(
            f"preset: {preset!r} is not one of {', '.join(sorted(PRESETS))}",
            code="unknown_preset", field="preset", value=preset,
        )  # fmt: skip
    merged = _merge(PRESETS[preset], own) if preset else own
    name = merged.get("recipe")
    recipe = RECIPES.get(name) if isinstance(name, str) else None
    if recipe is not None:
        merged = _completed(merged, own, recipe, from_preset=preset is not None)
    spec = JobSpec.model_validate_json(json.dumps(merged))
    _require_one_model(spec)
    _require_schedule(spec)
    return spec


def _completed(
    merged: Mapping[str, Any], own: Mapping[str, Any], recipe: Recipe, *, from_preset: bool
) -> dict[str, Any]:
    """``merged`` for this recipe: see :func:`resolve`. What has the wrong form is left for validation to refuse."""
    sections = dict(merged)
    sanitize, boost = merged.get("sanitize"), merged.get("boost")
    if isinstance(sanitize, Mapping) and recipe.schedule is not None:
        sanitize = _merge({"privsa": {"schedule": recipe.schedule}}, sanitize)
        asked = own.get("sanitize")
        names_model = isinstance(asked, Mapping) and "model" in asked
        if from_preset and recipe.trains_premium_privately and not names_model and isinstance(boost, Mapping):
            sanitize["model"] = boost.get("model")
        sections["sanitize"] = sanitize
    unused = _OPTIONAL - recipe.needs - recipe.may_have
    return {name: section for name, section in sections.items() if name not in unused or name in own}


def _require_schedule(spec: JobSpec) -> None:
    """A recipe's name says how PrivSA's weight falls: a job must not do something else under that name."""
    wanted = RECIPES[spec.recipe].schedule
    if spec.sanitize is not None and spec.sanitize.privsa.schedule != wanted:
        given = spec.sanitize.privsa.schedule
        raise InvalidInput(
            f"sanitize.privsa.schedule: {given!r} is not that of recipe {spec.recipe}, which is {wanted!r}",
            code="schedule_of_recipe", field="sanitize.privsa.schedule", value=given,
        )  # fmt: skip


def _require_one_model(spec: JobSpec) -> None:
    """Where sanitize trains the premium model, a boost section trains that same model."""
    if spec.sanitize is None or spec.boost is None or not RECIPES[spec.recipe].trains_premium_privately:
        return
    if spec.sanitize.model != spec.boost.model:
        raise InvalidInput(
            f"boost.model: {spec.boost.model!r} is not sanitize.model {spec.sanitize.model!r}; recipe {spec.recipe} "
            "trains one model twice",
            code="models_differ", field="boost.model", value=spec.boost.model,
        )  # fmt: skip

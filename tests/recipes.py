"""The least request of each recipe, and what may be added to it."""

from __future__ import annotations

from typing import Any

from privcode.recipes import RECIPES

WARM_UP: dict[str, Any] = {
    "dataset": "ds_3", "lora": {"rank": 1, "alpha": 1, "target_modules": ["q_proj"]}, "steps": 1, "batch": 1,
    "learning_rate": 1e-4, "seq_length": 64,
}  # fmt: skip
ADDITIONS: dict[str, Any] = {"warm_up": WARM_UP, "rows_of_job": "job_1"}


def request_of(recipe: str, **over: Any) -> dict[str, Any]:
    prompts = {"prompts": "ds_2"} if "prompts" in RECIPES[recipe].needs else {}
    return {"preset": "demo", "recipe": recipe, "dataset": "ds_1", **prompts, **over}

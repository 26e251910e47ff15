"""Rows, artifacts and requests of the tests of recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from privcode.artifacts import ArtifactStore
from privcode.db.models import Artifact, new_id
from privcode.recipes import RECIPES

PAIRS = [{"problem": f"Add {n}.", "solution": f"x + {n}", "lang": "python"} for n in range(40)]


def add_artifact(
    session: Any, store: ArtifactStore, tenant_id: str, rows: Sequence[Mapping[str, str]], **of: Any
) -> Artifact:  # fmt: skip
    folder = store.staging()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = store.put(folder)
    artifact = Artifact(
        id=new_id("art"), tenant_id=tenant_id, sha256=stored.sha256, bytes=stored.bytes, files=list(stored.files),
        inputs={}, **of,
    )  # fmt: skip
    session.add(artifact)
    session.flush()
    return artifact


def request(recipe: str, data: SimpleNamespace, **over: Any) -> dict[str, Any]:
    prompts = {"prompts": data.prompts} if "prompts" in RECIPES[recipe].needs else {}
    return {"preset": "demo", "recipe": recipe, "dataset": data.dataset, **prompts, **over}

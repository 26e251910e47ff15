"""One embedded stack for all end-to-end tests: every process real, the models tiny."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privcode.client import Client
from privcode.embedded import EmbeddedStack

# Stands in every private row: wherever it is found afterwards, something private got out.
MARKER = "zanzibar_marker_7391"


@pytest.fixture(scope="session")
def homes() -> Iterator[Path]:
    """Where stacks may live: not below pytest's own folder, to which another pytest takes away PostgreSQL's access."""
    folder = Path(tempfile.mkdtemp(prefix="pc-e2e-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def stack(homes: Path, tiny_llama: Path) -> Iterator[EmbeddedStack]:
    home = homes / "shared"
    shutil.copytree(tiny_llama, home / "volume" / "models" / "tiny-llama")
    with EmbeddedStack(home) as running:
        yield running


@pytest.fixture(scope="session")
def client(stack: EmbeddedStack) -> Client:
    assert stack.admin_key
    return Client(stack.url, stack.admin_key)


def private_rows(count: int, *, salt: str) -> list[dict[str, str]]:
    return [
        {
            "problem": f"Write a Python function that adds {n} to its argument ({MARKER}, {salt}).",
            "solution": f"def {MARKER}_{n}(x):\n    if x:\n        return x + {n}\n    return {n}\n",
            "lang": "python",
        }
        for n in range(count)
    ]


@pytest.fixture
def upload(client: Client, tmp_path: Path) -> Any:
    """``upload(rows, **query)`` -> the dataset's id."""

    def upload(rows: list[dict[str, str]], **query: Any) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset_id: str = client.upload_dataset(path, name="test", **query)["id"]
        return dataset_id

    return upload


def job_request(dataset: str, prompts: str, **over: Any) -> dict[str, Any]:
    """The whole recipe on the tiny model in about half a minute."""
    lora = {"rank": 1, "alpha": 1, "target_modules": ["q_proj", "v_proj"]}
    request: dict[str, Any] = {
        "recipe": "privcode",
        "dataset": dataset,
        "prompts": prompts,
        "prompt_template": "chat",
        "privacy": {"target_epsilon": 3.1415, "target_delta": 1e-5, "expected_batch": 8, "steps": 3},
        "sanitize": {"model": "local/tiny-llama", "lora": lora, "learning_rate": 1e-5, "seq_length": 128},
        "synthesize": {"max_prompts": 6, "max_new_tokens": 96},
        "round_trip": {
            "describer": "local/tiny-llama", "scorer": "all-minilm-l6-v2", "samples": 1, "temperature": 0.0,
            "max_new_tokens": 64, "tau": -1,
        },
        "boost": {
            "model": "local/tiny-llama", "lora": lora, "steps": 2, "batch": 2, "learning_rate": 1e-5,
            "seq_length": 128,
        },
        "evaluate": {"limit": 3, "max_new_tokens": 96},
        "audit": {"canary_rate": 2, "prompts": 4, "samples_per_prompt": 2, "max_new_tokens": 16},
        "runtime": {"checkpoint_every": 2},
    }  # fmt: skip
    return request | over

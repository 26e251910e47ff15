"""What several tiers share."""

from __future__ import annotations

from pathlib import Path

import pytest

_MARKED_BY_FOLDER = ("integration", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(Path(__file__).parent).parts[0]
        if tier in _MARKED_BY_FOLDER:
            item.add_marker(tier)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model (``tests/tiny.py``); about ten seconds, once a session. Read-only."""
    from tests.tiny import build_tiny_llama

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    build_tiny_llama(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SmolLM2-135M-Instruct, converted from its package; half a minute, once a session. Read-only."""
    from lm.models import resolve_model

    return Path(resolve_model("smollm2-135m-instruct", models_dir=tmp_path_factory.mktemp("converted")))

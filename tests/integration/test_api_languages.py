"""GET /v1/sandbox/languages, with the real runner and without one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from privcode.languages import LANGUAGES
from privcode.settings import Settings
from tests.contract.sandbox_runner import running_runner


@pytest.fixture
def socket_of_a_runner(sockets: Path) -> Iterator[Path]:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap (bwrap) is not installed; `make test` installs it")
    folder = sockets / "runner"
    folder.mkdir()
    with running_runner(folder) as runner:
        yield runner.socket


def _client(settings: Settings, tenant: SimpleNamespace) -> TestClient:
    return TestClient(create_app(settings), headers={"Authorization": f"Bearer {tenant.key}"})


def test_the_ten_languages_have_a_version_or_a_reason(
    settings: Settings, tenant: SimpleNamespace, socket_of_a_runner: Path
) -> None:
    with _client(settings.model_copy(update={"sandbox_socket": socket_of_a_runner}), tenant) as client:
        answer = client.get("/v1/sandbox/languages")
    assert answer.status_code == 200
    assert (answer.json()["object"], answer.json()["has_more"]) == ("list", False)
    found = {status["language"]: status for status in answer.json()["data"]}
    assert list(found) == list(LANGUAGES)
    assert found["python"]["version"]
    assert found["shell"]["version"].startswith("GNU bash")
    for status in found.values():
        assert (status["version"] is None) is (status["missing"] is not None), status


def test_without_a_runner_it_says_that_the_sandbox_is_unavailable(settings: Settings, tenant: SimpleNamespace) -> None:
    assert not settings.sandbox_socket.exists()
    with _client(settings, tenant) as client:
        answer = client.get("/v1/sandbox/languages")
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"]) == (503, "sandbox_unavailable")
    assert "the sandbox runner can't be reached" in answer.json()["detail"]

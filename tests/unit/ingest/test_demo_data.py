"""The demo's archives: from the interpreter's own library, disjoint, repeatable, and large enough."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from privcode.demo_data import DemoArchives, write_stdlib_archives
from privcode.ingest import IngestRequest, IngestSummary, ingest


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> DemoArchives:
    return write_stdlib_archives(tmp_path_factory.mktemp("demo"))


def modules(path: Path) -> set[str]:
    with tarfile.open(path) as tar:
        return {name.split("/")[0].removesuffix(".py") for name in tar.getnames()}


def mined(path: Path, *, visibility: str) -> tuple[IngestSummary, set[str]]:
    request = IngestRequest.model_validate(
        {
            "format": "archive",
            "kind": "pairs",
            "visibility": visibility,
            "max_solution_chars": 700,
            "max_problem_chars": 400,
        }
    )
    output = path.with_suffix(".jsonl")
    return ingest(path, request=request, output=output), set(output.read_text(encoding="utf-8").splitlines())


def test_no_module_is_in_both_and_none_is_a_test(archives: DemoArchives) -> None:
    private, public = modules(archives.private), modules(archives.public)
    assert not private & public
    assert not (private | public) & {"test", "site-packages", "lib2to3"}
    assert 0.6 < len(private) / len(private | public) < 0.9


def test_the_same_interpreter_gives_the_same_bytes(archives: DemoArchives, tmp_path: Path) -> None:
    again = write_stdlib_archives(tmp_path)
    assert again.public.read_bytes() == archives.public.read_bytes()


def test_there_is_enough_for_the_demo(archives: DemoArchives) -> None:
    private, private_rows = mined(archives.private, visibility="private")
    public, public_rows = mined(archives.public, visibility="public")
    assert private.rows >= 300
    assert public.rows >= 80
    assert not private_rows & public_rows
    assert "unparsable" not in private.skipped

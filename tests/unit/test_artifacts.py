"""Artifacts: content-addressed, whole or not there, and never changed unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from privcode.artifacts import ArtifactStore, CorruptArtifact


def _make(store: ArtifactStore, files: dict[str, str]) -> Path:
    folder = store.staging()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_equal_content_is_one_artifact(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    files = {"a.txt": "one", "sub/b.txt": "two"}
    first, second = (store.put(_make(store, files)) for _ in range(2))
    assert first == second
    assert (first.files, first.bytes) == (("a.txt", "sub/b.txt"), 6)
    assert (store.verify(first.sha256) / "sub/b.txt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == [first.sha256[:2]], "no staging folder is left"


def test_other_content_or_another_name_is_another_artifact(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    stored = [store.put(_make(store, files)) for files in ({"a": "x"}, {"a": "y"}, {"b": "x"})]
    assert len({one.sha256 for one in stored}) == 3


@pytest.mark.parametrize("damage", ["change", "remove", "manifest"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    store = ArtifactStore(tmp_path)
    stored = store.put(_make(store, {"a": "x"}))
    folder = store.path(stored.sha256)
    if damage == "change":
        (folder / "a").write_text("y")
    elif damage == "remove":
        (folder / "a").unlink()
    else:
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match=stored.sha256[:12]):
        store.verify(stored.sha256)


def test_links_are_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    folder = _make(store, {"a": "x"})
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(CorruptArtifact, match="link"):
        store.put(folder)

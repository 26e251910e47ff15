"""Immutable, content-addressed folders on the shared volume.

An artifact is a folder ``ROOT/ab/abcd.../`` with its files and ``manifest.json``; its sha256 is that of the manifest,
which lists each file with its sha256. It appears by one rename, after everything in it has reached the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privcode.errors import PrivCodeError

MANIFEST: Final = "manifest.json"
SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class StoredArtifact:
    sha256: str
    bytes: int
    files: tuple[str, ...]


class CorruptArtifact(PrivCodeError):
    code = "artifact_corrupt"


class ArtifactStore:
    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256

    def put(self, folder: Path) -> StoredArtifact:
        """Move ``folder`` (on the same volume) into the store. Links in it are refused."""
        entries: list[dict[str, str]] = []
        size = 0
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise CorruptArtifact(f"{path.relative_to(folder)} is not a regular file")
            if path.is_file():
                size += path.stat().st_size
                entries.append({"path": str(path.relative_to(folder)), "sha256": _hash_and_sync(path)})
        manifest = json.dumps({"schema_version": SCHEMA_VERSION, "files": entries}, sort_keys=True).encode()
        stored = StoredArtifact(
            sha256=hashlib.sha256(manifest).hexdigest(),
            bytes=size,
            files=tuple(entry["path"] for entry in entries),
        )
        target = self.path(stored.sha256)
        if target.exists():
            shutil.rmtree(folder)
            return stored
        with (folder / MANIFEST).open("wb") as file:
            file.write(manifest)
            file.flush()
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():
                raise
            shutil.rmtree(folder)
        _sync_folder(target.parent)
        return stored

    def verify(self, sha256: str) -> Path:
        """The artifact's folder, after checking every byte of it against the manifest.

        Raises :class:`CorruptArtifact`.
        """
        folder = self.path(sha256)
        try:
            manifest = (folder / MANIFEST).read_bytes()
            intact = hashlib.sha256(manifest).hexdigest() == sha256 and all(
                _hash_and_sync(folder / entry["path"]) == entry["sha256"] for entry in json.loads(manifest)["files"]
            )
        except OSError:
            intact = False
        if not intact:
            raise CorruptArtifact(f"artifact {sha256[:12]} on the volume is missing or was changed")
        return folder

    def staging(self) -> Path:
        """A new empty folder on the store's volume, to be filled and then :meth:`put`."""
        self._root.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".staging-", dir=self._root))


def _hash_and_sync(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

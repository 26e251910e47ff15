"""Generations of a checkpoint in a folder: files that show by their names whether they are whole.

The worker asks how many steps a next attempt need not repeat, and reserves for the rest; the trainer goes on from the
very file that this was read from. Both use :meth:`Generations.newest`, so that they can't disagree.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from privcode.errors import StageFailed

_NAME: Final = re.compile(r"checkpoint-(\d+)-([0-9a-f]{64})\.pt")


@dataclass(frozen=True, order=True)
class Generation:
    """A checkpoint after ``step`` steps; ``sha256`` is what its name says of its content."""

    step: int
    sha256: str
    path: Path

    def is_whole(self) -> bool:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


class Generations:
    """The newest checkpoint in ``folder`` and the one before it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: Generation | None = None

    def newest(self) -> Generation | None:
        """The newest whole checkpoint; None if none was ever written.

        Raises :class:`StageFailed` (``checkpoint_unusable``) if there are some and all are damaged: to begin again
        would take all steps once more without anybody having asked for it.
        """
        found = self._found()
        for generation in sorted(found, reverse=True):
            if generation.is_whole():
                self._last = generation
                return generation
        if found:
            raise StageFailed(f"all {len(found)} checkpoints are damaged", code="checkpoint_unusable")
        return None

    def write(self, step: int, save: Callable[[BinaryIO], object]) -> None:
        """Add what ``save`` writes as the newest; when this returns it survives a crash of the machine.

        The last one read or written by this object is kept beside it, all others are removed.
        """
        temporary = self._folder / "checkpoint.tmp"
        with temporary.open("w+b") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        new = Generation(step, sha256, self._folder / f"checkpoint-{step}-{sha256}.pt")
        temporary.rename(new.path)
        _sync(self._folder)
        for old in self._found() - {new, self._last}:
            old.path.unlink()
        self._last = new

    def _found(self) -> set[Generation]:
        matches = ((path, _NAME.fullmatch(path.name)) for path in self._folder.glob("checkpoint-*.pt"))
        return {Generation(int(match[1]), match[2], path) for path, match in matches if match}


def write_durably(path: Path, data: bytes) -> None:
    """Replace ``path``; when this returns the new content survives a crash of the machine."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

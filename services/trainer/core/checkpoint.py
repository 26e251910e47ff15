"""What a lost attempt leaves behind: how many steps were taken, and a state to go on from.

All files are in the stage's ``keep_dir``, which is private. Each is replaced atomically and durably.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privcode.errors import StageFailed


def write_durably(path: Path, data: bytes) -> None:
    """Replace ``path``; when this returns the new content survives a crash of the machine."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class StepCounter:
    """The number of steps whose noise may have been drawn, over all attempts; the ledger is charged for it.

    It only grows: steps that a resumed attempt repeats count again. ``steps_taken`` in ``folder`` is the file the
    worker reads when the attempt is lost or cancelled.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "steps_taken"
        try:
            self._taken = int(self._path.read_text())
        except FileNotFoundError:
            self._taken = 0

    @property
    def taken(self) -> int:
        return self._taken

    def count(self) -> None:
        """Count one step, durably. To be called before the step's noise is drawn, never after."""
        write_durably(self._path, str(self._taken + 1).encode())
        self._taken += 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after ``step`` optimizer steps. Learning rate, lambda and seeded lots are functions of the step; secret
    lots are drawn afresh; noise has no state."""

    step: int
    adapter: Mapping[str, Tensor]
    optimizer: dict[str, Any]


class CheckpointFile:
    """The newest checkpoint of one stage. ``run`` identifies plan and spec: a checkpoint of another is refused."""

    def __init__(self, folder: Path, *, run: str) -> None:
        self._path = folder / "checkpoint.pt"
        self._count = folder / "checkpointed_steps"
        self._run = run

    def save(self, checkpoint: Checkpoint) -> None:
        buffer = io.BytesIO()
        torch.save({"run": self._run, **vars(checkpoint)}, buffer)
        write_durably(self._path, buffer.getvalue())
        # After the checkpoint: too small a number reserves too much budget, too large a number too little.
        write_durably(self._count, str(checkpoint.step).encode())

    def load(self) -> Checkpoint | None:
        """The newest checkpoint, None if there is none.

        Raises :class:`StageFailed` (``checkpoint_unusable``) if it can't be read or is another run's. To begin again
        instead would spend more than was reserved.
        """
        if not self._path.exists():
            return None
        try:
            state = torch.load(self._path, weights_only=True, map_location="cpu")
            run = state.pop("run")
            checkpoint = Checkpoint(**state)
        except Exception as error:
            raise StageFailed("the checkpoint can't be read", code="checkpoint_unusable") from error
        if run != self._run:
            raise StageFailed("the checkpoint was made with another plan or spec", code="checkpoint_unusable")
        return checkpoint

"""What a lost attempt leaves behind: how many steps were taken, and a state to go on from.

All files are in the stage's ``keep_dir``, which is private. Each is replaced atomically and durably.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privcode.checkpoints import Generations, write_durably
from privcode.errors import StageFailed


class StepCounter:
    """The number of steps whose noise may have been drawn, over all attempts; the ledger is charged for it.

    It only grows: steps that a resumed attempt repeats count again. ``steps_taken`` in ``folder`` is the file the
    worker reads when the attempt is lost or cancelled. ``limit``: how many the ledger has reserved; None where there is
    no ledger.
    """

    def __init__(self, folder: Path, *, limit: int | None = None) -> None:
        self._path = folder / "steps_taken"
        self._limit = limit
        try:
            self._taken = int(self._path.read_text())
        except FileNotFoundError:
            self._taken = 0

    @property
    def taken(self) -> int:
        return self._taken

    def count(self) -> None:
        """Count one step, durably. To be called before the step's noise is drawn, never after.

        Raises :class:`StageFailed` (``reservation_exhausted``) for a step beyond ``limit``, which is not counted.
        """
        if self._limit is not None and self._taken >= self._limit:
            raise StageFailed(
                f"{self._taken} steps were taken, as many as were reserved: another would overspend",
                code="reservation_exhausted",
            )
        write_durably(self._path, str(self._taken + 1).encode())
        self._taken += 1


class TrainingLog:
    """A private row for each step taken, over all attempts. Not synced: a crash of the machine may cost rows, which
    nothing rests on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, row: Mapping[str, Any]) -> None:
        # A line break before the row, and not after it: a line that a crash cut off ends there.
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(row))

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows but those that a crash cut off."""
        with self._path.open(encoding="utf-8") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State after ``step`` optimizer steps, when ``steps_taken`` had been counted. Learning rate, lambda and seeded
    lots are functions of the step; secret lots are drawn afresh; noise has no state."""

    step: int
    steps_taken: int
    adapter: Mapping[str, Tensor]
    optimizer: dict[str, Any]


class CheckpointFile:
    """The two newest checkpoints of one stage. ``run`` identifies plan and spec, and so the mechanism that
    ``steps_taken`` is counted for: a checkpoint of another run is refused."""

    def __init__(self, folder: Path, *, run: str) -> None:
        self._generations = Generations(folder)
        self._run = run

    def save(self, checkpoint: Checkpoint) -> None:
        self._generations.write(checkpoint.step, lambda file: torch.save({"run": self._run, **vars(checkpoint)}, file))

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, None if there was never one.

        Raises :class:`StageFailed` (``checkpoint_unusable``) if all are damaged, or if it can't be read or is another
        run's. To begin again instead would spend more than was reserved.
        """
        newest = self._generations.newest()
        if newest is None:
            return None
        try:
            state = torch.load(newest.path, weights_only=True, map_location="cpu")
            run = state.pop("run")
            checkpoint = Checkpoint(**state)
        except Exception as error:
            raise StageFailed("the checkpoint can't be read", code="checkpoint_unusable") from error
        if run != self._run:
            raise StageFailed("the checkpoint was made with another plan or spec", code="checkpoint_unusable")
        return checkpoint

"""The folders on the volume in which a stage works.

``work/STAGE/keep`` outlives an attempt (checkpoints, the count of steps taken); ``work/STAGE/attempt-N`` is one
attempt's. Both are private: mode 0700, never an artifact as a whole.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from privcode.checkpoints import Generations


@dataclass(frozen=True)
class Workspace:
    root: Path

    @classmethod
    def of(cls, work_dir: Path, stage_id: str) -> Workspace:
        return cls(root=work_dir / stage_id)

    @property
    def keep(self) -> Path:
        return self.root / "keep"

    def make_attempt(self, attempt: int) -> Path:
        """A new, empty folder for this attempt."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.keep.mkdir(exist_ok=True, mode=0o700)
        folder = self.root / f"attempt-{attempt}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    def steps_taken(self) -> int:
        """Steps whose noise was drawn, over all attempts; 0 if there was none.

        The trainer counts a step durably before it draws the step's noise (``services/trainer/core``).
        """
        try:
            return int((self.keep / "steps_taken").read_text())
        except FileNotFoundError:
            return 0

    def checkpointed_steps(self) -> int:
        """Steps that a next attempt need not repeat; 0 if there is no checkpoint. Reads and checks the checkpoint.

        Raises :class:`~privcode.errors.StageFailed` (``checkpoint_unusable``) if there are some and all are damaged.
        """
        newest = Generations(self.keep).newest()
        return newest.step if newest else 0

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

"""What is there of a runner's executions on the host, to be compared before and after."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_SCRATCH: Final = ("/tmp", "/dev/shm")
_SANDBOX_ID: Final = 65534


@dataclass(frozen=True)
class Remains:
    processes: tuple[str, ...]
    mounts: tuple[str, ...]
    files: tuple[str, ...]
    groups: tuple[str, ...]


def remains_of(runner_pid: int) -> Remains:
    """Processes below the runner, by name; mounts that it sees; files of a program's user, or of the runner's where
    that is the same; control groups of its executions."""
    owner = _SANDBOX_ID if os.geteuid() == 0 else os.geteuid()
    return Remains(
        processes=tuple(sorted(child.name() for child in psutil.Process(runner_pid).children(recursive=True))),
        mounts=tuple(Path(f"/proc/{runner_pid}/mountinfo").read_text().splitlines()),
        files=tuple(
            sorted(str(path) for folder in _SCRATCH for path in Path(folder).iterdir() if path.lstat().st_uid == owner)
        ),
        groups=tuple(sorted(str(path) for path in Path("/sys/fs/cgroup").rglob(f"privcode-{runner_pid}-*"))),
    )

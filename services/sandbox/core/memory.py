"""Memory of a whole process tree. An address-space limit holds for one process; a program may have many."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def tree_bytes(root: int, *, limit_bytes: int) -> int:
    """Memory that the process ``root`` and its descendants hold.

    Resident sizes count a page once for each process that shares it, but are cheap: only where they exceed the limit
    is the proportional size asked for, which counts it once (proc(5), ``smaps_rollup``).
    """
    pids = list(_descendants(root))
    resident = _total(pids, _resident_bytes)
    return resident if resident <= limit_bytes else min(resident, _total(pids, _proportional_bytes))


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in children.read_text().split():
                    yield from _descendants(int(child))


def _total(pids: list[int], size: Callable[[int], int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            total += size(pid)
    return total


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def _proportional_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0

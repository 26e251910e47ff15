"""Memory of a whole process tree. An address-space limit holds for one process; a program may have many."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def tree_exceeds(root: int, *, limit_bytes: int) -> bool:
    """Whether the process ``root`` and its descendants hold more than ``limit_bytes`` of memory.

    Resident sizes count a page once for each process that shares it, but are cheap: only when they exceed the limit
    is the proportional size asked for, which counts it once (proc(5), ``smaps_rollup``).
    """
    pids = list(_descendants(root))
    return _total(pids, _resident_bytes) > limit_bytes and _total(pids, _proportional_bytes) > limit_bytes


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

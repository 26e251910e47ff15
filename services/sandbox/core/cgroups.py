"""Control groups for single executions, where this process may make them: cgroup v2, or v1's memory and pids.

A limit on a group holds for the sum over its processes at every moment, and counts what they keep in tmpfs, which no
rlimit does. Sources: cgroup-v2.rst and cgroup-v1/memory.rst of the kernel's documentation.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

_ROOT: Final = Path("/sys/fs/cgroup")
_REMOVE_SECONDS: Final = 5.0
_numbers = itertools.count()


class Group(Protocol):
    """A group that holds one execution."""

    def add(self, pid: int) -> None: ...
    def peak_bytes(self) -> int: ...
    def ran_out(self) -> bool:
        """Whether the kernel killed a process of the group for want of memory."""
        ...


class Groups(Protocol):
    """Makes groups. ``version``: of the kernel's interface, for people."""

    @property
    def version(self) -> str: ...

    def group(self, *, memory_bytes: int, processes: int) -> contextlib.AbstractContextManager[Group]:
        """A new group, empty again and gone after the block. Raises OSError."""
        ...


def delegated_groups() -> Groups | None:
    """What this process may use; None where it may make no groups."""
    for find in (_version_2, _version_1):
        groups = find()
        if groups is not None:
            with contextlib.suppress(OSError), groups.group(memory_bytes=2**26, processes=16):
                return groups
    return None


@dataclass(frozen=True)
class _One:
    """The v2 group, or the v1 groups of both controllers."""

    memory: Path
    pids: Path
    peak: str
    events: str

    def add(self, pid: int) -> None:
        for folder in {self.memory, self.pids}:
            (folder / "cgroup.procs").write_text(str(pid))

    def peak_bytes(self) -> int:
        with contextlib.suppress(OSError):  # memory.peak is there from Linux 5.19 on
            return int((self.memory / self.peak).read_text())
        return 0

    def ran_out(self) -> bool:
        words = (self.memory / self.events).read_text().split()
        return int(dict(zip(words[::2], words[1::2], strict=False)).get("oom_kill", "0")) > 0


@dataclass(frozen=True)
class _Version2:
    parent: Path
    version: str = "cgroup v2"

    @contextmanager
    def group(self, *, memory_bytes: int, processes: int) -> Iterator[Group]:
        with _folder(self.parent) as own:
            (own / "memory.max").write_text(str(memory_bytes))
            with contextlib.suppress(OSError):  # without swap accounting there is no such file
                (own / "memory.swap.max").write_text("0")
            (own / "pids.max").write_text(str(processes))
            yield _One(memory=own, pids=own, peak="memory.peak", events="memory.events")


@dataclass(frozen=True)
class _Version1:
    memory: Path
    pids: Path
    version: str = "cgroup v1"

    @contextmanager
    def group(self, *, memory_bytes: int, processes: int) -> Iterator[Group]:
        with _folder(self.memory) as memory, _folder(self.pids) as pids:
            (memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
            with contextlib.suppress(OSError):
                (memory / "memory.memsw.limit_in_bytes").write_text(str(memory_bytes))
            (pids / "pids.max").write_text(str(processes))
            yield _One(memory=memory, pids=pids, peak="memory.max_usage_in_bytes", events="memory.oom_control")


def _version_2() -> Groups | None:
    own = _own_groups().get("")
    if own is None or not (_ROOT / "cgroup.controllers").exists():
        return None
    parent = _ROOT / own
    try:
        # A group with processes may not have controlled children: this process moves into a leaf first.
        leaf = parent / "runner"
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
        (parent / "cgroup.subtree_control").write_text("+memory +pids")
    except OSError:
        return None
    return _Version2(parent)


def _version_1() -> Groups | None:
    own = _own_groups()
    if "memory" not in own or "pids" not in own:
        return None
    return _Version1(memory=_ROOT / "memory" / own["memory"], pids=_ROOT / "pids" / own["pids"])


def _own_groups() -> dict[str, str]:
    """This process's group by controller, relative to the controller's mount; "" is version 2."""
    found = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path.lstrip("/")
    return found


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    folder = parent / f"privcode-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Processes that have just been killed still count for a moment."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)
        else:
            return

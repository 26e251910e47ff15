"""What a runner that was started by root does about it. Executions are given to an account without rights (see
``Bubblewrap``), which must be able to read the interpreter."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from pathlib import Path
from typing import Final

from privcode.errors import SandboxUnavailable
from services.sandbox.core.interpreter import Interpreter

# From <linux/sched.h> and <linux/mount.h>.
_CLONE_NEWNS: Final = 0x00020000
_MS_BIND: Final = 1 << 12
_MS_REC: Final = 1 << 14
_MS_SLAVE: Final = 1 << 19

_MOUNT_POINTS: Final = ("/mnt", "/media", "/srv", "/opt")


def reachable_interpreter(interpreter: Interpreter) -> Interpreter:
    """``interpreter``, readable by an account without rights.

    A Python below root's home folder is not. For it, this process gets a mount namespace of its own, in which an empty
    folder at the top shows the interpreter; nothing changes for any other process. To be called before the first
    thread is started. Raises :class:`SandboxUnavailable` if that can't be done.
    """
    source = interpreter.source
    if os.geteuid() != 0 or source is None or _open_to_all(source):
        return interpreter
    mount_point = next((Path(path) for path in _MOUNT_POINTS if _is_empty_folder(Path(path))), None)
    if mount_point is None:
        raise SandboxUnavailable(
            f"no empty folder among {', '.join(_MOUNT_POINTS)} to mount {source} at, which only root can read; "
            "start the runner as an ordinary user"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(_CLONE_NEWNS) != 0
        or libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None) != 0
        or libc.mount(os.fsencode(source), os.fsencode(mount_point), None, _MS_BIND | _MS_REC, None) != 0
    ):
        raise SandboxUnavailable(
            f"can't mount {source}, which only root can read: {os.strerror(ctypes.get_errno())}; "
            "start the runner as an ordinary user"
        )
    return dataclasses.replace(interpreter, source=mount_point)


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())

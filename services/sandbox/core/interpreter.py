"""Which Python the programs run with: the one that the runner itself runs on, without anything installed into it."""

from __future__ import annotations

import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from privcode.errors import SandboxUnavailable

_MOUNT_POINT: Final = PurePosixPath("/opt/python")


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """``executable``: its path inside the sandbox. ``source``: the host's folder to mount at ``mount_point``; both are
    None for a Python below ``/usr``, which every sandbox has. ``hidden``: folders inside the sandbox to cover with
    empty ones, so that no installed package can be imported. ``library_path``: where its shared library is."""

    executable: PurePosixPath
    source: Path | None
    mount_point: PurePosixPath | None
    hidden: tuple[PurePosixPath, ...]
    library_path: PurePosixPath | None


def running_interpreter() -> Interpreter:
    """The interpreter beneath the running virtual environment.

    Raises :class:`SandboxUnavailable` if its executable is not inside its own prefix, so that mounting the prefix
    would not be enough.
    """
    prefix = Path(sys.base_prefix).resolve()
    executable = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    if not executable.is_relative_to(prefix):
        raise SandboxUnavailable(f"the Python executable {executable} is not below its prefix {prefix}")
    packages = [Path(folder).resolve() for folder in site.getsitepackages([sys.base_prefix])]
    if prefix == Path("/usr"):
        return Interpreter(
            executable=PurePosixPath(executable),
            source=None,
            mount_point=None,
            # Those below /usr/local are not mounted at all.
            hidden=tuple(PurePosixPath(path) for path in packages if path.is_dir() and "local" not in path.parts),
            library_path=None,
        )
    return Interpreter(
        executable=_MOUNT_POINT / executable.relative_to(prefix),
        source=prefix,
        mount_point=_MOUNT_POINT,
        hidden=tuple(_MOUNT_POINT / path.relative_to(prefix) for path in packages if path.is_dir()),
        library_path=_MOUNT_POINT / "lib" if sysconfig.get_config_var("Py_ENABLE_SHARED") else None,
    )

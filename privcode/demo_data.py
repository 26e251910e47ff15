"""The demo's data: the running interpreter's own standard library, as one private and one public source archive."""

from __future__ import annotations

import gzip
import hashlib
import sysconfig
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Other people's packages, fixtures, and modules that are one large table of text.
_LEFT_OUT: Final = frozenset(
    {
        "site-packages",
        "dist-packages",
        "__pycache__",
        "test",
        "tests",
        "idle_test",
        "lib2to3",
        "lib-dynload",
        "pydoc_data",
    }
)


@dataclass(frozen=True, kw_only=True)
class DemoArchives:
    """Paths of the two .tar.gz; no top-level module is in both."""

    private: Path
    public: Path


def _sources(root: Path) -> list[Path]:
    """Paths of the library's source files relative to ``root``, sorted."""
    paths = (path.relative_to(root) for path in root.rglob("*.py") if path.is_file() and not path.is_symlink())
    return sorted(path for path in paths if not _LEFT_OUT.intersection(path.parts))


def is_public(module: str) -> bool:
    """Whether a top-level module belongs to the public quarter: by a hash of its name, the same on every machine."""
    return hashlib.sha256(module.encode()).digest()[0] % 4 == 0


def _write(archive: Path, root: Path, sources: Sequence[Path]) -> None:
    """A .tar.gz whose bytes depend on names and contents only."""
    with (
        archive.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for source in sources:
            member = tarfile.TarInfo(source.as_posix())
            with (root / source).open("rb") as content:
                member.size = (root / source).stat().st_size
                tar.addfile(member, content)


def write_stdlib_archives(folder: Path) -> DemoArchives:
    """Write ``private.tar.gz`` (about three quarters of the library) and ``public.tar.gz`` into ``folder``.

    Tests, caches, installed packages and lib2to3's fixtures are left out. The same interpreter gives the same bytes.
    """
    root = Path(sysconfig.get_path("stdlib"))
    archives = DemoArchives(private=folder / "private.tar.gz", public=folder / "public.tar.gz")
    sources = _sources(root)
    public = [source for source in sources if is_public(source.parts[0].removesuffix(".py"))]
    _write(archives.public, root, public)
    _write(archives.private, root, sorted(set(sources) - set(public)))
    return archives

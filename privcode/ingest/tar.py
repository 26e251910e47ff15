"""The files of a .tar or .tar.gz, read as a stream; nothing is ever written to disk.

The standard library parses one header (``TarInfo.frombuf``); the walk from header to header is here, because every size
has to be checked before anything of that size is read. ``tarfile`` itself reads a pax record or a long name whole,
however large it says it is, follows chains of them by recursion, and expands sparse maps in memory.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from privcode.errors import InvalidInput
from privcode.ingest.contract import MIB, IngestLimits

_BLOCK: Final = tarfile.BLOCKSIZE
_CHUNK: Final = 256 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"
_MAX_HEADER_BYTES: Final = 64 * 1024
_MAX_PATH: Final = 4096
_RATIO_FLOOR: Final = 10 * MIB

_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_HEADERS: Final = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS: Final = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link"}
_SPECIAL: Final = {
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "fifo",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}
_DRIVE: Final = re.compile(r"[A-Za-z]:")


def _refuse(message: str, *, code: str, value: str | int | None) -> NoReturn:
    raise InvalidInput(f"file: {message}", code=code, field="file", value=value)


def _shown(path: str) -> str:
    """A member's path as it may stand in a message: printable and short."""
    return "".join(character if character.isprintable() else "\ufffd" for character in path[:200])


class _Stream:
    """Reads the unpacked bytes and counts them. Never asks the decompressor for more than one chunk."""

    def __init__(self, file: BinaryIO, *, uploaded: int, limits: IngestLimits) -> None:
        self._file = file
        self._unpacked = 0
        self._limits = limits
        self._ratio_limit = max(_RATIO_FLOOR, uploaded * limits.max_ratio)

    def chunk(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end. A gzip member that is cut or damaged is ``archive_corrupt``."""
        try:
            data = self._file.read(min(size, _CHUNK))
        except (EOFError, gzip.BadGzipFile, zlib.error):
            data = None
        if data is None:
            _refuse("the compressed data is damaged or cut short", code="archive_corrupt", value=None)
        self._unpacked += len(data)
        if self._unpacked > self._limits.max_unpacked_bytes:
            limit = self._limits.max_unpacked_bytes
            _refuse(f"unpacks to more than {limit} bytes", code="archive_too_large", value=limit)
        if self._unpacked > self._ratio_limit:
            ratio = self._limits.max_ratio
            _refuse(f"unpacks to more than {ratio} times its size", code="archive_bomb", value=ratio)
        return data

    def exactly(self, size: int) -> bytes:
        """``size`` bytes. Raises ``archive_corrupt`` where the archive ends before."""
        parts: list[bytes] = []
        while size > 0:
            data = self.chunk(size)
            if not data:
                _refuse("the archive is cut short", code="archive_corrupt", value=None)
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.exactly(min(size, _CHUNK)))


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _pax_records(data: bytes) -> dict[str, str]:
    """The ``LENGTH KEY=VALUE\\n`` records of a pax header (POSIX.1-2001)."""
    records: dict[str, str] = {}
    while data:
        length, space, _ = data.partition(b" ")
        # isdigit before int: int() also takes signs, underscores and thousands of digits.
        size = int(length) if space and length.isdigit() and len(length) <= 6 else 0
        key, equals, value = data[len(length) + 1 : size - 1].partition(b"=")
        if size > len(data) or not equals or data[size - 1 : size] != b"\n":
            _refuse("a pax header is damaged", code="archive_corrupt", value=None)
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        data = data[size:]
    return records


def _checked_path(name: str) -> str:
    """``name`` without ``./``. Refuses what would leave the folder it is unpacked in, on any system."""
    parts = re.split(r"[/\\]", name)
    unsafe = (
        not name or len(name) > _MAX_PATH or name[0] in "/\\" or _DRIVE.match(name) or ".." in parts or "\0" in name
    )
    if unsafe:
        _refuse(f"{_shown(name)!r} is not a path below the archive's root", code="archive_path", value=_shown(name))
    return "/".join(part for part in name.split("/") if part not in ("", "."))


@dataclass(frozen=True, kw_only=True)
class _Member:
    path: str
    size: int
    type: bytes


class _Headers:
    """Puts the members together from the header blocks before each."""

    def __init__(self, stream: _Stream, *, limits: IngestLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._blocks = 0

    def _next_block(self) -> tarfile.TarInfo | None:
        """The next header, or None at the end-of-archive block."""
        block = self._stream.exactly(_BLOCK)
        if not block.strip(b"\0"):
            return None
        self._blocks += 1
        if self._blocks > 4 * self._limits.max_members:
            _refuse("has too many headers", code="archive_too_many_members", value=self._limits.max_members)
        header: tarfile.TarInfo | None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except (tarfile.HeaderError, ValueError):
            header = None
        if header is None or header.size < 0:
            first = self._blocks == 1
            _refuse(
                "is neither a .tar nor a .tar.gz" if first else "a member's header is damaged",
                code="not_an_archive" if first else "archive_corrupt", value=None,
            )  # fmt: skip
        return header

    def next_member(self) -> _Member | None:
        records: dict[str, str] = {}
        long_name: str | None = None
        while (header := self._next_block()) is not None:
            if header.type not in _HEADERS:
                return self._member(header, records, long_name)
            if header.size > _MAX_HEADER_BYTES:
                _refuse(
                    f"a header of {header.size} bytes is above the limit of {_MAX_HEADER_BYTES}",
                    code="archive_header_too_large", value=header.size,
                )  # fmt: skip
            data = self._stream.exactly(_padded(header.size))[: header.size]
            if header.type in _PAX:
                records = _pax_records(data)
            elif header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = data.rstrip(b"\0").decode("utf-8", "replace")
        if records or long_name is not None:
            _refuse("a header has no member", code="archive_corrupt", value=None)
        return None

    def _member(self, header: tarfile.TarInfo, records: dict[str, str], long_name: str | None) -> _Member:
        name = records.get("path", long_name if long_name is not None else header.name)
        path = _checked_path(name)
        if kind := _LINKS.get(header.type):
            _refuse(f"{_shown(name)!r} is a {kind}", code="archive_link", value=_shown(name))
        sparse = any(key.startswith("GNU.sparse.") for key in records)
        if sparse or header.type not in (*_FILES, tarfile.DIRTYPE):
            kind = "sparse file" if sparse else _SPECIAL.get(header.type, "member of an unknown type")
            _refuse(f"{_shown(name)!r} is a {kind}", code="archive_member", value=_shown(name))
        if header.type == tarfile.DIRTYPE:
            # Whatever size its header gives, a directory has no data.
            return _Member(path=path, size=0, type=header.type)
        size = header.size
        if text := records.get("size"):
            if not (text.isascii() and text.isdigit() and len(text) <= 18):
                _refuse(f"{_shown(name)!r} has a damaged size", code="archive_corrupt", value=_shown(name))
            size = int(text)
        if size > self._limits.max_member_bytes:
            _refuse(
                f"{_shown(name)!r} is larger than {self._limits.max_member_bytes} bytes",
                code="archive_member_too_large", value=_shown(name),
            )  # fmt: skip
        return _Member(path=path, size=size, type=header.type)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A regular file of the archive. ``content`` is None where it was not wanted."""

    path: str
    size: int
    content: bytes | None


def _walk(stream: _Stream, *, wanted: re.Pattern[str], limits: IngestLimits) -> Iterator[SourceFile]:
    headers = _Headers(stream, limits=limits)
    members = 0
    while (member := headers.next_member()) is not None:
        members += 1
        if members > limits.max_members:
            _refuse(
                f"has more than {limits.max_members} members", code="archive_too_many_members", value=limits.max_members
            )
        if member.type in _FILES and wanted.search(member.path) and member.size <= limits.max_source_bytes:
            content = stream.exactly(_padded(member.size))[: member.size]
            yield SourceFile(path=member.path, size=member.size, content=content)
            continue
        stream.skip(_padded(member.size))
        if member.type in _FILES:
            yield SourceFile(path=member.path, size=member.size, content=None)
    # To the very end, so that a damaged tail is seen, and nothing that follows is silently left out.
    while tail := stream.chunk(_CHUNK):
        if tail.strip(b"\0"):
            _refuse("there is more data after the end of the archive", code="archive_corrupt", value=None)


def read_archive(path: Path, *, wanted: re.Pattern[str], limits: IngestLimits) -> Iterator[SourceFile]:
    """Yield the regular files of a .tar or .tar.gz in their order, with content where the path matches ``wanted`` and
    the file is at most ``max_source_bytes``.

    Holds one file and one chunk in memory. Raises :class:`InvalidInput`: not_an_archive, archive_corrupt, archive_path,
    archive_link, archive_member (device, fifo, sparse file), archive_member_too_large, archive_header_too_large,
    archive_too_many_members, archive_too_large, archive_bomb.
    """
    uploaded = path.stat().st_size
    with path.open("rb") as raw:
        compressed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        raw.seek(0)
        if uploaded < len(_GZIP_MAGIC) or (not compressed and uploaded < _BLOCK):
            _refuse("is neither a .tar nor a .tar.gz", code="not_an_archive", value=None)
        if not compressed:
            yield from _walk(_Stream(raw, uploaded=uploaded, limits=limits), wanted=wanted, limits=limits)
            return
        with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
            # GzipFile is a BinaryIO in all but its declared type.
            stream = _Stream(unpacked, uploaded=uploaded, limits=limits)  # type: ignore[arg-type]
            yield from _walk(stream, wanted=wanted, limits=limits)

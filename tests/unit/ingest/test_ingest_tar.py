"""Archives: hostile members, bombs and damage are refused before they cost anything."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privcode.errors import InvalidInput
from privcode.ingest import IngestLimits
from privcode.ingest.tar import SourceFile, read_archive

SOURCE = b"def f():\n    pass\n"
WANTED = re.compile(r"\.py$")


def member(name: str, *, type_: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type_, link, size
    return info


def archive(*members: tuple[tarfile.TarInfo, bytes], format_: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        for info, content in members:
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read(tmp_path: Path, content: bytes, **limits: int) -> list[SourceFile]:
    upload = tmp_path / "upload"
    upload.write_bytes(content)
    return list(read_archive(upload, wanted=WANTED, limits=IngestLimits(**limits)))


def refusal(tmp_path: Path, content: bytes, **limits: int) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, content, **limits)
    assert caught.value.field == "file"
    return caught.value


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_files_are_read_in_order_with_long_and_foreign_names(
    tmp_path: Path, format_: int, pack: Callable[[bytes], bytes]
) -> None:
    long = "/".join(["folder"] * 40) + "/módulo.py"
    content = archive(
        (member("./a", type_=tarfile.DIRTYPE), b""),
        (member("./a/x.py"), SOURCE),
        (member(long), SOURCE * 100),
        (member("data.bin"), b"\0" * 1000),
        (member("big.py"), b"#" * 5000),
        format_=format_,
    )
    assert read(tmp_path, pack(content), max_source_bytes=4000) == [
        SourceFile(path="a/x.py", size=len(SOURCE), content=SOURCE),
        SourceFile(path=long, size=len(SOURCE) * 100, content=SOURCE * 100),
        SourceFile(path="data.bin", size=1000, content=None),
        SourceFile(path="big.py", size=5000, content=None),
    ]


@pytest.mark.parametrize(
    "name", ["../x.py", "a/../../x.py", "a/..", "/etc/x.py", "\\x.py", "a\\..\\x.py", "C:/x.py", "c:x.py", "..", ""]
)
@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_paths_that_leave_the_archive_are_refused(tmp_path: Path, name: str, format_: int) -> None:
    error = refusal(tmp_path, archive((member("ok.py"), SOURCE), (member(name), SOURCE), format_=format_))
    assert (error.code, error.value) == ("archive_path", name)


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_path_in_an_extended_header_is_checked_too(tmp_path: Path, format_: int) -> None:
    name = "a/" * 120 + "../" * 130 + "x.py"
    assert refusal(tmp_path, archive((member(name), SOURCE), format_=format_)).code == "archive_path"


@pytest.mark.parametrize(
    ("type_", "code"),
    [
        (tarfile.SYMTYPE, "archive_link"),
        (tarfile.LNKTYPE, "archive_link"),
        (tarfile.CHRTYPE, "archive_member"),
        (tarfile.BLKTYPE, "archive_member"),
        (tarfile.FIFOTYPE, "archive_member"),
        (tarfile.GNUTYPE_SPARSE, "archive_member"),
        (b"Z", "archive_member"),
    ],
)
def test_only_files_and_folders_are_taken(tmp_path: Path, type_: bytes, code: str) -> None:
    error = refusal(tmp_path, archive((member("a/x.py", type_=type_, link="ok.py"), b"")))
    assert (error.code, error.value) == (code, "a/x.py")


def test_a_pax_sparse_file_is_refused(tmp_path: Path) -> None:
    info = member("x.py")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999999"}
    assert refusal(tmp_path, archive((info, SOURCE))).code == "archive_member"


def test_a_small_file_that_unpacks_to_a_lot_is_refused_early(tmp_path: Path) -> None:
    bomb = gzip.compress(archive((member("x.bin"), b"\0" * (48 * 2**20))), compresslevel=9)
    assert len(bomb) < 100_000
    tracemalloc.start()
    error = refusal(tmp_path, bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (error.code, error.value) == ("archive_bomb", 100)
    assert peak < 8 * 2**20


def test_a_bomb_of_nothing_but_zero_blocks_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, gzip.compress(b"\0" * (32 * 2**20))).code == "archive_bomb"


@pytest.mark.parametrize(
    "type_", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_a_header_that_says_it_is_huge_is_not_read(tmp_path: Path, type_: bytes) -> None:
    header = member("x", type_=type_, size=2**35).tobuf(tarfile.GNU_FORMAT)
    error = refusal(tmp_path, header + b"\0" * 1024)
    assert (error.code, error.value) == ("archive_header_too_large", 2**35)


def test_a_chain_of_headers_ends(tmp_path: Path) -> None:
    chain = member("x", type_=tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT) * 5000
    assert refusal(tmp_path, chain, max_members=1000).code == "archive_too_many_members"


def test_members_and_sizes_have_limits(tmp_path: Path) -> None:
    content = archive(*((member(f"{number}.py"), SOURCE) for number in range(5)))
    assert len(read(tmp_path, content, max_members=5)) == 5
    assert refusal(tmp_path, content, max_members=4).code == "archive_too_many_members"
    assert refusal(tmp_path, content, max_unpacked_bytes=4000).code == "archive_too_large"
    large = refusal(tmp_path, content, max_member_bytes=len(SOURCE) - 1)
    assert (large.code, large.value) == ("archive_member_too_large", "0.py")


def test_the_size_of_an_extended_header_counts(tmp_path: Path) -> None:
    info = member("x.bin")
    info.pax_headers = {"size": str(2**40)}
    assert refusal(tmp_path, archive((info, SOURCE))).code == "archive_member_too_large"


def test_the_data_a_folder_claims_to_have_is_not_skipped(tmp_path: Path) -> None:
    folder = member("a", type_=tarfile.DIRTYPE, size=10_000).tobuf(tarfile.GNU_FORMAT)
    assert [file.path for file in read(tmp_path, folder + archive((member("a/x.py"), SOURCE)))] == ["a/x.py"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_a_cut_archive_is_refused_wherever_it_is_cut(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    content = pack(archive((member("x.py"), SOURCE * 50), (member("y.py"), SOURCE)))
    end = content.rstrip(b"\0") if pack is bytes else content
    for length in range(0, len(end), 37):
        assert refusal(tmp_path, content[:length]).code in ("archive_corrupt", "not_an_archive")


def test_damage_is_refused(tmp_path: Path) -> None:
    content = archive((member("x.py"), SOURCE), (member("y.py"), SOURCE))
    packed = bytearray(gzip.compress(content))
    packed[-5] ^= 1
    assert refusal(tmp_path, bytes(packed)).code == "archive_corrupt"
    # 0xff starts a deflate block of the reserved type.
    assert refusal(tmp_path, gzip.compress(content)[:10] + b"\xff" * 600).code == "archive_corrupt"
    second = bytearray(content)
    second[1024 + 150] ^= 1
    assert refusal(tmp_path, bytes(second)).code == "archive_corrupt"
    assert refusal(tmp_path, content + b"more").code == "archive_corrupt"
    assert refusal(tmp_path, gzip.compress(content) + b"more").code == "archive_corrupt"


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b'{"problem": "p"}\n', b"PK\x03\x04" + b"x" * 2000, gzip.compress(b"x" * 2000), b"\xff" * 4096],
)
def test_other_files_are_not_archives(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path, content).code == "not_an_archive"


@pytest.mark.parametrize(
    "records",
    [b"12 path=x.py", b"99 path=x.py\n", b"path=x.py\n", b"-3 path=x\n", b"0 =\n", b"9 pathxy\n", b"\xb2 path=x\n"],
)
def test_damaged_pax_records_are_refused(tmp_path: Path, records: bytes) -> None:
    header = member("x", type_=tarfile.XHDTYPE, size=len(records)).tobuf(tarfile.GNU_FORMAT)
    content = header + records.ljust(512, b"\0") + archive((member("x.py"), SOURCE))
    assert refusal(tmp_path, content).code == "archive_corrupt"


def test_a_negative_size_is_refused(tmp_path: Path) -> None:
    block = bytearray(member("x.py").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 4 + struct.pack(">q", -512)
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    assert refusal(tmp_path, bytes(block) + b"\0" * 1024).code == "not_an_archive"


def test_an_unprintable_path_is_made_printable(tmp_path: Path) -> None:
    error = refusal(tmp_path, archive((member("../\x1b[31m" + "x" * 90), SOURCE), format_=tarfile.GNU_FORMAT))
    assert error.value == "../\ufffd[31m" + "x" * 90


BASE = archive((member("a/x.py"), SOURCE), (member("../" + "é" * 120), SOURCE))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=1500)
    | st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.binary(min_size=1, max_size=8)), max_size=3).map(
        lambda edits: _edited(edits)
    ),
    st.booleans(),
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, packed: bool) -> None:
    with contextlib.suppress(InvalidInput):
        read(tmp_path, gzip.compress(content) if packed else content)


def _edited(edits: list[tuple[int, bytes]]) -> bytes:
    """The base archive with some bytes overwritten, and the checksum of its headers made right again."""
    data = bytearray(BASE)
    for position, new in edits:
        data[position : position + len(new)] = new
    del data[len(BASE) :]
    for start in range(0, 4 * 512, 512):
        block = data[start : start + 512]
        data[start + 148 : start + 156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    return bytes(data)

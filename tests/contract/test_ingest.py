"""The ingest child: what the API may rely on whatever an upload contains."""

from __future__ import annotations

import ast
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from privcode.errors import InvalidInput
from privcode.ingest import IngestLimits, IngestRequest, ingest, ingest_in_child

REQUEST = IngestRequest(format="jsonl", kind="pairs", visibility="private")
ROW = json.dumps({"problem": "Add.", "solution": "a + b"}).encode() + b"\n"


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    path = tmp_path / "upload"
    path.write_bytes(ROW)
    return path


def test_the_child_answers_as_a_direct_call_does(upload: Path, tmp_path: Path) -> None:
    direct = ingest(upload, request=REQUEST, output=tmp_path / "direct.jsonl")
    in_child = ingest_in_child(upload, request=REQUEST, output=tmp_path / "child.jsonl")
    assert in_child == direct
    assert (tmp_path / "child.jsonl").read_bytes() == (tmp_path / "direct.jsonl").read_bytes()


def test_the_childs_refusal_comes_through_unchanged(upload: Path, tmp_path: Path) -> None:
    upload.write_bytes(ROW + b'{"problem": "p", "solution": "s", "lang": "cobol"}\n')
    refusals = []
    for call in (ingest, ingest_in_child):
        with pytest.raises(InvalidInput) as caught:
            call(upload, request=REQUEST, output=tmp_path / "out.jsonl")
        error = caught.value
        refusals.append((error.message, error.code, error.field, error.value))
        assert not (tmp_path / "out.jsonl").exists()
    assert refusals[0] == refusals[1]
    assert refusals[0][1:] == ("unknown_language", "lang", "cobol")


def test_a_line_of_one_gigabyte_fits_a_child_with_little_memory(upload: Path, tmp_path: Path) -> None:
    with upload.open("ab") as file:
        file.truncate(2**30)
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(InvalidInput) as caught:
        ingest_in_child(upload, request=REQUEST, output=tmp_path / "out.jsonl")
    assert (caught.value.code, caught.value.value) == ("line_too_long", 2)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started < 10


def test_memory_above_the_limit_is_a_crash_of_the_child_alone(upload: Path, tmp_path: Path) -> None:
    upload.write_text(json.dumps({"problem": "p" * 60_000_000, "solution": "s"}))
    limits = IngestLimits(max_line_bytes=2**30, memory_bytes=_address_space_of_an_idle_child() + 64 * 2**20)
    with pytest.raises(InvalidInput) as caught:
        ingest_in_child(upload, request=REQUEST, output=tmp_path / "out.jsonl", limits=limits)
    assert (caught.value.code, caught.value.field, caught.value.value) == ("ingest_crashed", "file", "MemoryError")
    assert not (tmp_path / "out.jsonl").exists()


def test_many_rows_take_little_memory(upload: Path, tmp_path: Path) -> None:
    with upload.open("wb") as file:
        for number in range(120):
            file.write(json.dumps({"problem": f"{number}" + "x" * 500_000, "solution": "s"}).encode() + b"\n")
    limits = IngestLimits(memory_bytes=_address_space_of_an_idle_child() + 32 * 2**20)
    summary = ingest_in_child(upload, request=REQUEST, output=tmp_path / "out.jsonl", limits=limits)
    assert summary.rows == 120
    assert (tmp_path / "out.jsonl").stat().st_size > 57 * 2**20


def _address_space_of_an_idle_child() -> int:
    code = (
        "import privcode.ingest.child as _; "
        "print(next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmSize')))"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) * 1024


def test_a_child_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    started = time.monotonic()
    with pytest.raises(InvalidInput) as caught:
        ingest_in_child(fifo, request=REQUEST, output=tmp_path / "out.jsonl", limits=IngestLimits(time_limit_s=0.5))
    assert (caught.value.code, caught.value.field) == ("ingest_timed_out", "file")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("kill -SEGV $$", "SIGSEGV"),
        ("exit 3", "exit status 3"),
        ("cat >/dev/null; echo '{\"summary\": {}}'", "no answer"),
        ("cat >/dev/null", "no answer"),
        ("cat >/dev/null; echo '{}'", "no answer"),
    ],
)
def test_a_child_that_dies_is_a_refusal(upload: Path, tmp_path: Path, script: str, cause: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    output = tmp_path / "out.jsonl"
    output.write_bytes(b"half a row")
    with pytest.raises(InvalidInput) as caught:
        ingest_in_child(upload, request=REQUEST, output=output, python=str(python))
    assert (caught.value.code, caught.value.value) == ("ingest_crashed", cause)
    assert not output.exists()


def test_the_child_gets_no_credentials(upload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVCODE_DATABASE_URL", "postgresql://secret")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nenv >{tmp_path}/environment\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(InvalidInput):
        ingest_in_child(upload, request=REQUEST, output=tmp_path / "out.jsonl", python=str(python))
    assert "PYTHONPATH" in (tmp_path / "environment").read_text()
    assert "secret" not in (tmp_path / "environment").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="dying with the parent is asked of Linux")
def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = (
        "import pathlib, privcode.ingest as i; p = pathlib.Path; "
        f"i.ingest_in_child(p({str(fifo)!r}), output=p({str(tmp_path / 'out')!r}), "
        "request=i.IngestRequest(format='jsonl', kind='pairs', visibility='private'))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    # Opening returns when the child has opened the other end to read, so the child is at work.
    writer = os.open(fifo, os.O_WRONLY)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    try:
        with pytest.raises(BrokenPipeError):
            _write_for(writer, seconds=10)
    finally:
        os.close(writer)


def _write_for(descriptor: int, *, seconds: float) -> None:
    """Write blank lines: as long as somebody reads them, the pipe takes them."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        os.write(descriptor, b"\n")


def test_ingestion_imports_nothing_heavy() -> None:
    code = "import sys, privcode.ingest; print(sorted({'torch', 'sqlalchemy', 'celery', 'fastapi'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(result.stdout) == []

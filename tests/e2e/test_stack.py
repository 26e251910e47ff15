"""Starting and stopping: nothing is left behind, and what was there is there again."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from privcode.client import Client
from privcode.embedded import EmbeddedStack


def _processes_of(home: Path) -> list[str]:
    """Command lines of processes that have to do with ``home``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            about = command + (path / "environ").read_bytes().decode("latin-1")
        except OSError:
            continue
        if str(home) in about and int(path.name) != os.getpid():
            found.append(command)
    return found


def test_a_second_start_keeps_the_state_and_the_key(homes: Path) -> None:
    home = homes / "restarted"
    keys = []
    for _ in range(2):
        with EmbeddedStack(home) as stack:
            assert stack.admin_key
            keys.append(stack.admin_key)
            assert Client(stack.url, stack.admin_key).jobs() == []
    assert keys[0] == keys[1]
    mode = stat.S_IMODE((home / "credentials.json").stat().st_mode)
    assert mode == 0o600
    assert _processes_of(home) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_process_behind(homes: Path, how: signal.Signals) -> None:
    home = homes / how.name
    up = subprocess.Popen(
        [sys.executable, "-m", "privcode.cli", "up", "--home", str(home), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert up.stdout
        seen = ""
        while "http://127.0.0.1:" not in seen:
            line = up.stdout.readline()
            assert line, seen
            seen += line
        url = "http://127.0.0.1:" + seen.split("http://127.0.0.1:")[1].split()[0].strip("/.,")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        assert httpx.get(f"{url}/readyz").json() == {"database": "ok", "broker": "ok", "sandbox": "ok"}
        assert httpx.get(f"{url}/v1/jobs").status_code == 401
        assert len(_processes_of(home)) > 5
        up.send_signal(how)
        up.communicate(timeout=30)
    finally:
        up.kill()
    assert _processes_of(home) == []

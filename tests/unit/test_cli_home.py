"""The home folder of the command line: credentials, one process at a time, what a new demo removes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from privcode.cli import app
from privcode.cli.home import NoCredentials, connect, lock_home
from privcode.demo import _clear
from privcode.errors import Conflict


def test_a_home_that_is_given_wins_over_the_environment(tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text('{"url": "http://127.0.0.1:1", "api_key": "pc_x_y"}')
    environment = {"PRIVCODE_URL": "http://elsewhere", "PRIVCODE_API_KEY": "k"}
    assert connect(tmp_path, environment).url == "http://127.0.0.1:1"
    assert connect(None, environment).url == "http://elsewhere"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"url": "http://x"}'])
def test_missing_or_broken_credentials_are_a_clear_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "credentials.json").write_text(content)
    with pytest.raises(NoCredentials, match=r"credentials\.json"):
        connect(tmp_path, {})


@pytest.mark.parametrize("given", ["PRIVCODE_URL", "PRIVCODE_API_KEY"])
def test_half_of_the_environment_is_an_error(given: str) -> None:
    with pytest.raises(NoCredentials, match="go together"):
        connect(None, {given: "x"})


def test_one_process_per_home(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys; from pathlib import Path; from privcode.cli.home import lock_home\n"
         "with lock_home(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Conflict) as refused, lock_home(tmp_path):
        pass
    assert refused.value.code == "home_in_use"
    assert CliRunner().invoke(app, ["demo", "--home", str(tmp_path)]).exit_code == 1
    holder.kill()
    holder.communicate()
    with lock_home(tmp_path):
        pass


def test_the_demo_starts_afresh_but_keeps_the_models(tmp_path: Path) -> None:
    for name in ("postgres/PG_VERSION", "volume/artifacts/a", "volume/work/w", "volume/models/m", "report.html",
                 "logs/api.log"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "credentials.json").touch()
    _clear(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "volume/models/m", "report.html",
    }  # fmt: skip

"""The runner over its standard streams, as it is in a container; and the image that puts it there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from privcode.results import Outcome
from privcode.sandbox import Execution, ExecutionBatch, ExecutionResult
from privcode.specs import ExecutionLimits

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "services.sandbox.runner"]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap (bwrap) is not installed; `make test` installs it")
    with subprocess.Popen(
        [*COMMAND, "--stdio", "--concurrency", "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        yield started
        started.kill()


def ask(process: subprocess.Popen[str], **programs: str) -> None:
    executions = [Execution(id=name, language="python", code=code) for name, code in programs.items()]
    batch = ExecutionBatch(limits=ExecutionLimits(time_limit_s=30), executions=executions)
    assert process.stdin is not None
    process.stdin.write(batch.model_dump_json() + "\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> ExecutionResult:
    assert process.stdout is not None
    return ExecutionResult.model_validate_json(process.stdout.readline())


def test_it_tells_its_health_and_answers_as_programs_end(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["status"] == "ok"
    ask(process, slow="import time; time.sleep(1)", fast="print('\\n{}')")
    ask(process, later="exit(3)")
    results = [answer(process) for _ in range(3)]
    assert [result.id for result in results] == ["fast", "later", "slow"]
    assert results[0].stdout == "\n{}\n"
    assert results[1].exit_code == 3


def test_the_end_of_its_input_ends_what_runs(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    ask(process, endless="print('begun', flush=True)\nwhile True: pass", quick="pass")
    assert answer(process).id == "quick"
    began = time.monotonic()
    process.stdin.close()
    assert answer(process).outcome is Outcome.SANDBOX_UNAVAILABLE
    assert process.wait(timeout=15) == 0
    assert time.monotonic() - began < 10


def test_socket_and_streams_exclude_each_other(tmp_path: Path) -> None:
    for arguments in ((), ("--stdio", "--socket", tmp_path / "s")):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
        assert (done.returncode, "--socket" in done.stderr) == (2, True)


def test_the_image_has_every_module_that_the_runner_loads() -> None:
    listed = "print(*(m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, services.sandbox.runner.server\n{listed}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    files = [Path(line) for line in done.stdout.splitlines()]
    loaded = {str(file.relative_to(ROOT)) for file in files if file.is_relative_to(ROOT) and ".venv" not in file.parts}
    dockerfile = (ROOT / "services/sandbox/Dockerfile").read_text().replace("\\\n", " ")
    copied = [word for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]]
    assert "privcode/sandbox.py" in loaded
    assert [file for file in loaded if not any(file == word or file.startswith(f"{word}/") for word in copied)] == []

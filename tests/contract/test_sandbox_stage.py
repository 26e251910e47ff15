"""Stage 4 as the worker starts it: a child process with a folder, against the real runner."""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from sandbox_runner import Runner

from privcode.presets import resolve
from privcode.recipes import Label
from privcode.results import Candidate, ExecutedCandidate, Outcome, PrivacyPlan
from privcode.sandbox import ExecutionResult
from privcode.stage_io import StageEnvironment, StageInput, StageTask

PLAN = PrivacyPlan(
    target_epsilon=4.0, target_delta=1e-5, records=64, expected_batch=16, sample_rate=0.25, steps=4,
    noise_multiplier=1.0, max_grad_norm=1.0, clipping="flat", unit="record", units=64, max_records_per_unit=1,
)  # fmt: skip

PASSING = "```python\npass\n```"
COMPLETIONS = {
    "timed_out": "```python\nwhile True: pass\n```",
    "passed": "Sure:\n```python\ndef double(x):\n    return 2 * x\nprint(double(2))\n```\nDone.",
    "failed": "```python\nassert False, 'marked-private-text'\n```",
    "no_code": "I can't do that.",
    "unsupported_language": "```ruby\nputs 1\n```",
    "out_of_memory": "```python\nx = bytearray(10**10)\n```",
    "output_limit": "```py\nwhile True: print('x' * 1000)\n```",
}


def run_stage(folder: Path, completions: dict[str, str], *, socket: Path) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, progress messages, private log."""
    candidates = folder / "candidates"
    candidates.mkdir()
    rows = [
        Candidate(id=f"c-{name}", prompt_index=index, problem=f"problem {index}", completion=text, finish_reason="stop")
        for index, (name, text) in enumerate(completions.items())
    ]
    (candidates / "candidates.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    task = StageTask(
        job_id="job-1",
        stage="execute",
        attempt=1,
        spec=resolve({"preset": "demo", "dataset": "ds-1", "prompts": "ds-2", "execute": {"time_limit_s": 1.0}}),
        plan=PLAN,
        inputs={"candidates": StageInput(path=str(candidates), label=Label.DP)},
        keep_dir=str(folder),
        environment=StageEnvironment(models_dir=str(folder), sandbox_socket=str(socket), threads=1),
        history={},
    )
    (folder / "stage.json").write_text(task.model_dump_json())
    child = subprocess.run(
        [sys.executable, "-m", "services.sandbox.stage", str(folder)], capture_output=True, text=True, timeout=60
    )
    return child.returncode, [json.loads(line)["progress"] for line in child.stdout.splitlines()], child.stderr


def test_each_candidate_keeps_its_place_and_gets_its_outcome(runner: Runner, tmp_path: Path) -> None:
    status, progress, log = run_stage(tmp_path, COMPLETIONS, socket=runner.socket)
    assert status == 0, log
    rows = (tmp_path / "outputs" / "executed" / "executed.jsonl").read_text().splitlines()
    executed = [ExecutedCandidate.model_validate_json(row) for row in rows]
    assert [(candidate.id, candidate.outcome) for candidate in executed] == [
        (f"c-{name}", name) for name in COMPLETIONS
    ]
    by_outcome = {str(candidate.outcome): candidate for candidate in executed}
    assert by_outcome["passed"].code == "def double(x):\n    return 2 * x\nprint(double(2))\n"
    assert by_outcome["passed"].problem == "problem 1"
    assert by_outcome["no_code"].code == by_outcome["no_code"].language == ""
    assert by_outcome["unsupported_language"].language == "ruby"
    assert {name for name, candidate in by_outcome.items() if candidate.duration_s is None} == {
        "no_code",
        "unsupported_language",
    }
    assert (progress[0]["done"], progress[-1]["done"], progress[-1]["total"]) == (1, 7, 7)
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert metrics == {"candidates": 7, **dict.fromkeys(COMPLETIONS, 1)}


def test_more_candidates_than_one_batch(runner: Runner, tmp_path: Path) -> None:
    completions = {f"n{number}": "```python\npass\n```" if number > 60 else "```go\n1\n```" for number in range(70)}
    status, progress, log = run_stage(tmp_path, completions, socket=runner.socket)
    assert status == 0, log
    assert [step["done"] for step in progress] == list(range(71))
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert (metrics["candidates"], metrics["passed"], metrics["unsupported_language"]) == (70, 9, 61)


def test_nothing_to_execute_needs_no_runner(tmp_path: Path) -> None:
    status, _, log = run_stage(tmp_path, {"none": "no code"}, socket=tmp_path / "no.sock")
    assert status == 0, log


def assert_sandbox_unavailable(folder: Path, *, status: int) -> None:
    assert status == 1
    assert json.loads((folder / "error.json").read_text())["code"] == "sandbox_unavailable"
    assert not (folder / "outputs").exists()
    assert not (folder / "result.json").exists()


def test_without_a_runner_the_stage_fails_and_no_candidate_does(tmp_path: Path) -> None:
    status, _, _ = run_stage(tmp_path, {"one": PASSING}, socket=tmp_path / "no.sock")
    assert_sandbox_unavailable(tmp_path, status=status)


class Unavailable(BaseHTTPRequestHandler):
    """Answers as a runner whose sandbox fails for the second of two executions."""

    def do_POST(self) -> None:
        batch = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()
        for execution, outcome in zip(batch["executions"], ("passed", "sandbox_unavailable"), strict=True):
            result = ExecutionResult(id=execution["id"], outcome=Outcome(outcome))
            self.wfile.write(result.model_dump_json().encode() + b"\n")

    def log_request(self, *_: object) -> None:
        pass


def test_a_sandbox_that_fails_once_fails_the_stage(socket_folder: Path, tmp_path: Path) -> None:
    path = socket_folder / "unavailable.sock"
    with socketserver.UnixStreamServer(str(path), Unavailable) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        status, _, _ = run_stage(tmp_path, {"one": PASSING, "two": PASSING}, socket=path)
        server.shutdown()
        thread.join()
    assert_sandbox_unavailable(tmp_path, status=status)

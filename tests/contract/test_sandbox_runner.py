"""The runner as a service: its interface, its start, its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from sandbox_runner import Run, Runner, running_runner

from privcode.errors import SandboxUnavailable
from privcode.results import Outcome
from privcode.sandbox import Execution, ExecutionResult, RunnerClient
from privcode.specs import ExecutionLimits


def test_results_come_as_they_end(runner: Runner) -> None:
    slow = Execution(id="slow", language="python", code="import time; time.sleep(1)")
    fast = Execution(id="fast", language="python", code="pass")
    results = RunnerClient(runner.socket).run([slow, fast], limits=ExecutionLimits())
    assert [result.id for result in results] == ["fast", "slow"]


def test_no_more_than_the_concurrency_at_once(runner: Runner) -> None:
    sleepers = [Execution(id=str(n), language="python", code="import time; time.sleep(0.5)") for n in range(4)]
    began = time.monotonic()
    assert len(list(RunnerClient(runner.socket).run(sleepers, limits=ExecutionLimits()))) == 4
    assert time.monotonic() - began > 1.0


@pytest.fixture
def http(runner: Runner) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(runner.socket)), base_url="http://runner") as client:
        yield client


def test_health(http: httpx.Client) -> None:
    health = http.get("/healthz").json()
    assert (health["status"], health["concurrency"]) == ("ok", 2)
    assert health["sandbox"] in ("bubblewrap", "zygote")


@pytest.mark.parametrize(
    "body",
    [
        b"not JSON",
        b"[]",
        b'{"limits": {"time_limit_s": 0}, "executions": []}',
        b'{"limits": {"memory_mib": -1}, "executions": []}',
        b'{"limits": {}, "executions": [{"id": "a", "language": "python", "code": 17}]}',
        b'{"limits": {}, "executions": [{"id": "a", "language": "python", "code": "SECRET", "more": "SECRET"}]}',
    ],
)
def test_bad_batches_are_refused_without_an_echo(http: httpx.Client, body: bytes) -> None:
    response = http.post("/v1/executions", content=body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_batch")
    assert "SECRET" not in response.text


def test_an_id_that_is_there_twice_is_refused(http: httpx.Client) -> None:
    one = {"id": "a", "language": "python", "code": "pass"}
    assert http.post("/v1/executions", json={"limits": {}, "executions": [one, one]}).status_code == 422


def test_a_body_beyond_the_limit_is_refused(http: httpx.Client) -> None:
    assert http.post("/v1/executions", content=iter([bytes(1 << 20)] * 65)).status_code == 413


def test_what_a_caller_who_left_asked_for_is_not_begun(runner: Runner) -> None:
    batch = [Execution(id=str(n), language="python", code="import time; time.sleep(1)") for n in range(40)]
    results = RunnerClient(runner.socket).run(batch, limits=ExecutionLimits())
    next(results)
    results.close()
    began = time.monotonic()
    (result,) = RunnerClient(runner.socket).run(
        [Execution(id="next", language="python", code="pass")], limits=ExecutionLimits()
    )
    assert result.outcome is Outcome.PASSED
    assert time.monotonic() - began < 6


def test_only_this_user_may_connect(runner: Runner) -> None:
    assert runner.socket.stat().st_mode & 0o777 == 0o600


def test_the_runner_keeps_no_secret_in_its_environment(runner: Runner) -> None:
    assert b"secret-of-the-host" not in Path(f"/proc/{runner.process.pid}/environ").read_bytes()


def test_programs_and_output_are_not_logged(run: Run, runner: Runner) -> None:
    run("raise SystemExit('marked-private-text')")
    assert "marked-private-text" not in runner.log.read_text()


def test_a_runner_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable):
        list(RunnerClient(tmp_path / "no.sock").run([], limits=ExecutionLimits()))


# Its start and its end -----------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def is_running(mark: str) -> bool:
    for process in psutil.process_iter():
        try:
            if mark in process.cmdline():
                return True
        except psutil.Error:
            continue
    return False


def in_background(runner: Runner) -> tuple[str, list[object], threading.Thread]:
    """Let the runner execute two long programs; they carry the mark on their command line."""
    mark = f"mark-{uuid.uuid4()}"
    code = f"import os; os.execv('/bin/sh', ['sh', '-c', 'while :; do sleep 9; done', {mark!r}])"
    batch = [Execution(id=name, language="python", code=code) for name in "abcd"]
    ended: list[object] = []

    def call() -> None:
        try:
            ended.extend(RunnerClient(runner.socket).run(batch, limits=ExecutionLimits(time_limit_s=60)))
        except SandboxUnavailable as error:
            ended.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: is_running(mark))
    return mark, ended, thread


def test_sigterm_ends_all_that_runs_and_is_a_success(socket_folder: Path) -> None:
    folder = socket_folder / "term"
    folder.mkdir()
    with running_runner(folder) as own:
        mark, ended, thread = in_background(own)
        began = time.monotonic()
        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait(timeout=15) == 0
        assert time.monotonic() - began < 10
        thread.join(timeout=10)
        assert not is_running(mark)
        assert not own.socket.exists()
        outcomes = [result.outcome for result in ended if isinstance(result, ExecutionResult)]
        assert outcomes == [Outcome.SANDBOX_UNAVAILABLE] * len(outcomes)
        assert len(ended) >= 1


def test_a_killed_runner_takes_its_executions_along_and_leaves_a_socket_that_is_replaced(socket_folder: Path) -> None:
    folder = socket_folder / "kill"
    folder.mkdir()
    with running_runner(folder) as own:
        mark, ended, thread = in_background(own)
        own.process.kill()
        own.process.wait()
        wait_until(lambda: not is_running(mark))
        thread.join(timeout=10)
        assert isinstance(ended[-1], SandboxUnavailable)
        assert own.socket.exists()
        client = RunnerClient(own.socket)
        with pytest.raises(SandboxUnavailable):
            list(client.run([], limits=ExecutionLimits()))
    again = start_alone(own.socket)
    try:
        wait_until(lambda: answers(own.socket))
    finally:
        again.terminate()
        assert again.wait(timeout=15) == 0


def start_alone(path: Path) -> subprocess.Popen[str]:
    """A runner started from an empty environment, as the embedded stack nearly does."""
    return subprocess.Popen(
        [sys.executable, "-m", "services.sandbox.runner", "--socket", str(path)],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )


def answers(path: Path) -> bool:
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            return client.get("http://runner/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_it_ends_with_its_parent(socket_folder: Path) -> None:
    path = socket_folder / "orphan.sock"
    # The parent starts the runner from a thread that ends at once: that must not matter.
    code = f"""
import subprocess, sys, threading, time
def start():
    child = subprocess.Popen([sys.executable, "-m", "services.sandbox.runner", "--socket", {str(path)!r}])
    print(child.pid, flush=True)
thread = threading.Thread(target=start); thread.start(); thread.join()
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: answers(path))
        parent.kill()
    try:
        wait_until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
    finally:
        if orphan.is_running():
            orphan.kill()
    assert not path.exists()


def test_a_socket_in_use_is_not_taken_over(runner: Runner) -> None:
    second = start_alone(runner.socket)
    _, message = second.communicate(timeout=30)
    assert second.returncode == 1
    assert "can't start" in message
    assert str(runner.socket) in message
    assert answers(runner.socket)


def test_a_concurrency_of_none_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.sandbox.runner", "--socket", tmp_path / "s", "--concurrency", "0"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "--concurrency" in done.stderr) == (2, True)


def test_it_loads_no_code_of_database_broker_or_settings() -> None:
    code = """
import sys
import services.sandbox.runner.server
forbidden = {"sqlalchemy", "psycopg", "alembic", "celery", "kombu", "redis", "valkey", "pydantic_settings", "torch",
             "privcode.settings", "privcode.db", "privcode.jobs", "privcode.queue"}
print(sorted(forbidden & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""The docker backend against a real engine: what the contract says, through a container; and what is left of it.

``PRIVCODE_TEST_DOCKER_IMAGE`` names the runner's image (``docs/sandbox-backends.md``); ``DOCKER_HOST`` the engine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException
from docker.models.containers import Container
from sandbox_runner import FORK_BOMB, Runner, output_of, running_runner

from privcode.errors import SandboxUnavailable
from privcode.results import Outcome
from privcode.sandbox import Execution, ExecutionResult, RunnerClient
from privcode.specs import ExecutionLimits
from services.sandbox.core.container import remove_forgotten
from services.sandbox.core.container_profile import container_profile

Submit = Callable[..., ExecutionResult]
IMAGE = os.environ.get("PRIVCODE_TEST_DOCKER_IMAGE")


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    if IMAGE is None:
        pytest.skip("PRIVCODE_TEST_DOCKER_IMAGE is not set: NOTHING OF THE DOCKER BACKEND IS TESTED")
    try:
        client = docker.from_env()
        client.images.get(IMAGE)
    except DockerException as error:
        pytest.skip(f"no Docker engine with the image {IMAGE}: NOTHING OF THE DOCKER BACKEND IS TESTED ({error})")
    yield client
    client.close()


@pytest.fixture(scope="module")
def runner(engine: docker.DockerClient) -> Iterator[Runner]:
    assert containers(engine) == []
    with (
        tempfile.TemporaryDirectory(prefix="privcode-") as folder,
        running_runner(Path(folder), sandbox="docker", arguments=("--docker-image", str(IMAGE))) as started,
    ):
        wait_until(lambda: containers(engine) == [])
        yield started


@pytest.fixture
def submit(runner: Runner) -> Submit:
    def execute(code: str, *, language: str = "python", **limits: float) -> ExecutionResult:
        one = Execution(id="one", language=language, code=textwrap.dedent(code))
        (result,) = RunnerClient(runner.socket).run([one], limits=ExecutionLimits.model_validate(limits))
        return result

    return execute


def containers(engine: docker.DockerClient) -> list[Container]:
    found: list[Container] = engine.containers.list(
        all=True, filters={"label": "privcode.sandbox"}, ignore_removed=True
    )
    return found


def wait_until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def sleeper(name: str) -> Execution:
    return Execution(id=name, language="python", code="import os; os.execv('/bin/sleep', ['sleep', '61'])")


# The contract --------------------------------------------------------------------------------------------------------


def test_programs_pass_and_fail(submit: Submit) -> None:
    result = submit("import sys; print('Grüße 🦊'); print('err', file=sys.stderr)")
    assert (result.outcome, result.stdout, result.stderr) == (Outcome.PASSED, "Grüße 🦊\n", "err\n")
    result = submit("exit(3)")
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 3)


def test_limits(submit: Submit) -> None:
    assert submit("while True: pass", time_limit_s=0.5).outcome is Outcome.TIMED_OUT
    assert submit("x = bytearray(10**9)", memory_mib=128).outcome is Outcome.OUT_OF_MEMORY
    result = submit("import os\nwhile True: os.write(1, b'\\0' * 65536)", output_kib=64)
    assert (result.outcome, len(result.stdout)) == (Outcome.OUTPUT_LIMIT, 64 * 1024)


def test_a_fork_bomb_is_bounded(submit: Submit) -> None:
    result = submit(FORK_BOMB, processes=12, time_limit_s=1)
    assert (result.outcome, result.stdout) == (Outcome.TIMED_OUT, "11\n")
    output_of(submit("print('still there')"))


def test_there_is_no_network_and_nothing_of_the_host(submit: Submit, runner: Runner) -> None:
    paths = [
        "/etc/passwd",
        "/root",
        "/home",
        "/var",
        "/run",
        "/sys",
        "/opt/privcode",
        "/.dockerenv",
        str(runner.socket),
    ]
    code = f"""
        import os, socket
        print([path for path in {paths!r} if os.path.lexists(path)])
        print([line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line])
        print(sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
        try: socket.create_connection(("1.1.1.1", 80), timeout=2)
        except OSError as error: print(error.strerror)
    """
    assert output_of(submit(code)) == "[]\n['lo']\n[1, 2]\nNetwork is unreachable\n"


def test_two_executions_of_a_batch_do_not_see_each_other(runner: Runner) -> None:
    code = """
        import os, time
        open("/tmp/mine", "x").close()
        time.sleep(0.5)
        print(len([p for p in os.listdir("/proc") if p.isdigit()]), os.listdir("/tmp"))
    """
    batch = [Execution(id=name, language="python", code=textwrap.dedent(code)) for name in "abcd"]
    results = list(RunnerClient(runner.socket).run(batch, limits=ExecutionLimits()))
    assert sorted(result.id for result in results) == list("abcd")
    assert {output_of(result) for result in results} == {"2 ['mine']\n"}


def test_languages_are_those_of_the_image(runner: Runner) -> None:
    statuses = {status.language: status for status in RunnerClient(runner.socket).languages()}
    assert len(statuses) == 10
    assert statuses["python"].missing is None
    assert statuses["shell"].missing is None


# The container -------------------------------------------------------------------------------------------------------


def test_a_batch_has_one_container_that_is_hardened_and_gone_afterwards(
    engine: docker.DockerClient, runner: Runner
) -> None:
    batch = [sleeper("long"), *(Execution(id=str(n), language="python", code="pass") for n in range(5))]
    results = RunnerClient(runner.socket).run(batch, limits=ExecutionLimits(time_limit_s=3))
    assert next(results).outcome is Outcome.PASSED
    (container,) = containers(engine)
    config, host = container.attrs["Config"], container.attrs["HostConfig"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"]) == ("none", True, ["ALL"])
    assert (host["Privileged"], host["Binds"], host["Init"], config["User"]) == (False, None, True, "65532:65532")
    assert all(host[name] > 0 for name in ("Memory", "NanoCpus", "PidsLimit"))
    assert host["LogConfig"]["Type"] == "none"
    inside = container.exec_run(["cat", "/proc/1/status"]).output.decode()
    assert all(line in inside for line in ("CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"))
    assert sorted(result.outcome for result in results) == sorted([Outcome.TIMED_OUT] + [Outcome.PASSED] * 4)
    wait_until(lambda: containers(engine) == [])


def test_a_container_that_is_killed_is_no_programs_failure_and_the_next_batch_works(
    engine: docker.DockerClient, runner: Runner
) -> None:
    batch = [sleeper("a"), sleeper("b"), Execution(id="c", language="python", code="print('replaced')")]
    ended: list[ExecutionResult] = []
    client = RunnerClient(runner.socket)
    thread = threading.Thread(target=lambda: ended.extend(client.run(batch, limits=ExecutionLimits(time_limit_s=60))))
    thread.start()
    wait_until(lambda: sleepers(engine) == 2)
    (container,) = containers(engine)
    container.kill()
    thread.join(timeout=30)
    outcomes = {result.id: result.outcome for result in ended}
    assert outcomes == {"a": Outcome.SANDBOX_UNAVAILABLE, "b": Outcome.SANDBOX_UNAVAILABLE, "c": Outcome.PASSED}
    (after,) = client.run([Execution(id="d", language="python", code="print('next')")], limits=ExecutionLimits())
    assert output_of(after) == "next\n"
    wait_until(lambda: containers(engine) == [])


def sleepers(engine: docker.DockerClient) -> int:
    """How many run, in all containers."""
    rows = []
    for container in containers(engine):
        with contextlib.suppress(DockerException):  # it is about to start, or has gone
            rows += container.top()["Processes"] or ()
    return [row[-1] for row in rows].count("sleep 61")


def test_a_caller_who_leaves_takes_the_container_along(engine: docker.DockerClient, runner: Runner) -> None:
    batch = [Execution(id="quick", language="python", code="pass"), sleeper("long")]
    results = RunnerClient(runner.socket).run(batch, limits=ExecutionLimits(time_limit_s=60))
    next(results)
    results.close()
    wait_until(lambda: containers(engine) == [], seconds=10)


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_nothing_is_left_of_a_runner_that_ends(engine: docker.DockerClient, end: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="privcode-") as folder,
        running_runner(Path(folder), sandbox="docker", arguments=("--docker-image", str(IMAGE))) as own,
    ):
        ended: list[object] = []

        def call() -> None:
            try:
                ended.extend(RunnerClient(own.socket).run([sleeper("a")], limits=ExecutionLimits(time_limit_s=60)))
            except SandboxUnavailable as error:
                ended.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        wait_until(lambda: sleepers(engine) == 1)
        getattr(own.process, end)()
        assert own.process.wait(timeout=15) == (0 if end == "terminate" else -9)
        thread.join(timeout=15)
        assert len(ended) == 1
        wait_until(lambda: containers(engine) == [])


def test_containers_that_were_never_started_are_removed_when_nobody_can_want_them(
    engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = engine.containers.create(IMAGE, labels=["privcode.sandbox"])
    try:
        remove_forgotten(engine)
        assert containers(engine) == [forgotten]
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 700)
        remove_forgotten(engine)
        assert containers(engine) == []
    finally:
        with contextlib.suppress(DockerException):
            forgotten.remove(force=True)


def refusal(folder: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "services.sandbox.runner", "--socket", folder / "s", "--sandbox", "docker"),
            *arguments,
        ],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    return done.stderr


@pytest.mark.usefixtures("engine")
def test_an_image_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "no-such-image" in refusal(tmp_path, "--docker-image", "no-such-image:at-all")


def test_an_engine_or_option_that_is_missing_is_named(tmp_path: Path) -> None:
    nowhere = "unix:///nowhere/docker.sock"
    assert "engine does not answer" in refusal(tmp_path, "--docker-image", "any", DOCKER_HOST=nowhere)
    assert "--docker-image" in refusal(tmp_path)


def test_the_profile_that_is_shipped_is_the_one_in_use() -> None:
    shipped = Path(__file__).parents[2] / "services/sandbox/seccomp-container.json"
    assert json.loads(shipped.read_text()) == container_profile()

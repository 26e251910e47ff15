"""What a program finds: its processes, environment, account and folders. Attacks on all else: tests/security."""

from __future__ import annotations

import json
import textwrap

from sandbox_runner import Run, Runner, output_of

from privcode.sandbox import Execution, RunnerClient
from privcode.specs import ExecutionLimits


def test_it_sees_its_own_processes_only(run: Run) -> None:
    code = """
        import os
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        print(pids, os.getpid(), os.getppid())
    """
    assert output_of(run(code)) == "[1, 2] 2 1\n"


def test_its_environment_is_its_own(run: Run) -> None:
    names = json.loads(output_of(run("import json, os; print(json.dumps(sorted(os.environ)))")))
    assert set(names) <= {"HOME", "LANG", "LC_CTYPE", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX", "PATH", "PWD", "TMPDIR"}


def test_it_belongs_to_nobody(run: Run) -> None:
    code = "import os; print(os.getresuid(), os.getresgid(), set(os.getgroups()) - {65534})"
    assert output_of(run(code)) == "(65534, 65534, 65534) (65534, 65534, 65534) set()\n"


def test_its_folders_are_few(run: Run) -> None:
    top = json.loads(output_of(run("import json, os; print(json.dumps(os.listdir('/')))")))
    assert set(top) <= {"bin", "dev", "lib", "lib32", "lib64", "opt", "proc", "program", "tmp", "usr"}


def test_executions_at_the_same_time_use_the_same_names_and_ports(runner: Runner) -> None:
    code = """
        import os, socket, time
        open("/tmp/mine", "x").close()
        open("/dev/shm/mine", "x").close()
        server = socket.socket(); server.bind(("127.0.0.1", 5000)); server.listen()
        time.sleep(0.5)
        print(len([p for p in os.listdir("/proc") if p.isdigit()]), os.listdir("/tmp"))
    """
    executions = [Execution(id=name, language="python", code=textwrap.dedent(code)) for name in "abcd"]
    results = list(RunnerClient(runner.socket).run(executions, limits=ExecutionLimits()))
    assert sorted(result.id for result in results) == list("abcd")
    assert {output_of(result) for result in results} == {"2 ['mine']\n"}

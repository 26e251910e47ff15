"""The zygote: programs behave as under an interpreter of their own, and it is replaced when it dies."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sandbox_runner import Runner, running_runner

from privcode.results import Outcome
from privcode.sandbox import Execution, ExecutionResult, RunnerClient
from privcode.specs import ExecutionLimits


@pytest.fixture(scope="module")
def zygote(socket_folder: Path) -> Iterator[Runner]:
    folder = socket_folder / "own-zygote"
    folder.mkdir()
    with running_runner(folder, sandbox="zygote") as started:
        yield started


def execute(runner: Runner, code: str, **limits: float) -> ExecutionResult:
    execution = Execution(id="one", language="python", code=textwrap.dedent(code))
    (result,) = RunnerClient(runner.socket).run([execution], limits=ExecutionLimits.model_validate(limits))
    return result


PROGRAMS = {
    "falls off its end": "print('end')",
    "exits": "import sys; print('out'); sys.exit(3)",
    "exits with a message": "import sys; sys.exit('why')",
    "exits with a large number": "exit(258)",
    "exits with None": "import sys; sys.exit(None)",
    "is a syntax error": "x = 1\ndef f(:\n",
    "raises": "def f():\n    raise KeyError('k')\nf()",
    "raises with a cause": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('v') from error",
    "has its own excepthook": "import sys\nsys.excepthook = lambda kind, *_: print(kind.__name__)\n1 / 0",
    "registers exit functions": "import atexit\natexit.register(print, 1)\natexit.register(print, 2)\nprint(0)",
    "fails in an exit function": "import atexit\natexit.register(lambda: 1 / 0)\nprint(0)",
    "leaves a thread": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\nprint('main')",
    "leaves a daemon thread": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(9), print('thread')), daemon=True).start()\nprint('main')",
    "fails in a thread": "import threading\nthreading.Thread(target=lambda: 1 / 0, name='t').start()",
    "aborts": "import os; os.abort()",
    "kills itself": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "breaks its memory": "import ctypes; ctypes.string_at(0)",
    "closes its output": "import sys; print('lost'); sys.stdout.close()",
    "is a module": "print(__name__, __package__, __doc__, sorted(vars()))",
    "is the main module": "import __main__\nx = 7\nprint(__main__.x)",
    "has arguments": "import sys; print(len(sys.argv), sys.flags.isolated)",
    "reads its source": "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f))",
    "pickles its classes": "import pickle\nclass C: pass\nprint(type(pickle.loads(pickle.dumps(C()))).__module__)",
    "recurses": "def f(): f()\ntry: f()\nexcept RecursionError: print('deep')",
    "starts processes": "import multiprocessing as m\n"
    "if __name__ == '__main__':\n    with m.get_context('spawn').Pool(1) as pool: print(pool.map(abs, [-1]))",
    "has a future import": "from __future__ import annotations\ndef f(x: nowhere): pass\nprint(f.__annotations__)",
    "needs none of it": "print(print.__self__.__name__, type(__builtins__).__name__)",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends_as_under_an_interpreter_of_its_own(zygote: Runner, tmp_path: Path, name: str) -> None:
    program = tmp_path / "main.py"
    program.write_text(PROGRAMS[name])
    own = subprocess.run(
        [sys.executable, "-I", program], capture_output=True, text=True, env={"LANG": "C.UTF-8"}, cwd=tmp_path
    )  # fmt: skip
    result = execute(zygote, PROGRAMS[name])
    exit_code = own.returncode if own.returncode >= 0 else 128 - own.returncode

    def alike(text: str) -> str:
        text = text.replace(str(program), "/program/main.py").replace(sys.base_prefix, "/opt/python")
        return re.sub("0x[0-9a-f]+", "0x", text)

    assert (result.exit_code, result.stdout) == (exit_code, own.stdout)
    assert alike(result.stderr) == alike(own.stderr)


def test_files_larger_than_a_message(zygote: Runner) -> None:
    files = {"data/large.txt": "x" * 1_000_000}
    execution = Execution(id="one", language="python", code="print(len(open('data/large.txt').read()))", files=files)
    (result,) = RunnerClient(zygote.socket).run([execution], limits=ExecutionLimits())
    assert result.stdout == "1000000\n"


def test_random_numbers_differ(zygote: Runner) -> None:
    code = "import random, tempfile, uuid\nprint(random.random(), tempfile.mktemp(), uuid.uuid4())"
    assert len({execute(zygote, code).stdout for _ in range(3)}) == 3


def test_what_is_imported_beforehand_is_there_at_once(zygote: Runner) -> None:
    assert execute(zygote, "import sys; print({'json', 'asyncio', 'unittest'} <= set(sys.modules))").stdout == "True\n"


def test_a_zygote_that_was_killed_is_replaced(zygote: Runner) -> None:
    assert execute(zygote, "pass").outcome is Outcome.PASSED
    ended: list[ExecutionResult] = []
    program = "import os; os.execv('/usr/bin/sleep', ['sleep', '60.25'])"
    running = threading.Thread(target=lambda: ended.append(execute(zygote, program, time_limit_s=60)))
    running.start()
    wait_for_zygote_of(zygote, ["sleep", "60.25"]).kill()
    running.join(timeout=20)
    assert [result.outcome for result in ended] == [Outcome.SANDBOX_UNAVAILABLE]
    assert execute(zygote, "print('again')").stdout == "again\n"


def wait_for_zygote_of(runner: Runner, command: list[str]) -> psutil.Process:
    """The warm interpreter that a running program descends from."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for process in psutil.Process(runner.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline() == command:
                    first = process.parent()
                    assert first is not None
                    interpreter = first.parent()
                    assert interpreter is not None
                    return interpreter
    raise AssertionError("the program does not run")

"""Contract: what a program may do, and how its limits end it. Attacks on the limits: tests/security."""

from __future__ import annotations

import time

import pytest
from sandbox_runner import FORK_BOMB, Run, output_of

from privcode.results import Outcome

# What a program may do -----------------------------------------------------------------------------------------------


def test_a_program_that_ends_well_passes(run: Run) -> None:
    result = run("import sys; print('out'); print('err', file=sys.stderr)")
    assert (result.outcome, result.exit_code, result.stdout, result.stderr) == (Outcome.PASSED, 0, "out\n", "err\n")
    assert result.duration_s is not None
    assert 0 < result.duration_s < 5


def test_no_output_at_all_is_not_taken_for_a_failure_of_the_sandbox(run: Run) -> None:
    result = run("pass")
    assert (result.outcome, result.stdout, result.stderr) == (Outcome.PASSED, "", "")


@pytest.mark.parametrize(("code", "exit_code"), [("exit(3)", 3), ("import os; os.abort()", 134), ("1 / 0", 1)])
def test_other_exit_codes_fail(run: Run, code: str, exit_code: int) -> None:
    result = run(code)
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, exit_code)


@pytest.mark.parametrize("code", ["def f(:", "\0", "# coding: no-such\n"])
def test_what_python_can_not_read_fails(run: Run, code: str) -> None:
    assert run(code).outcome is Outcome.FAILED


def test_unicode_and_standard_input(run: Run) -> None:
    assert output_of(run("print('Grüße 🦊', input())", stdin="naïve 漢字\n")) == "Grüße 🦊 naïve 漢字\n"


def test_large_standard_input_that_nobody_reads(run: Run) -> None:
    assert output_of(run("print('done')", stdin="x" * 1_000_000)) == "done\n"


def test_bytes_that_are_not_text(run: Run) -> None:
    assert output_of(run("import sys; sys.stdout.buffer.write(b'a\\xff\\0b')")) == "a\ufffd\0b"


def test_a_program_in_the_manner_of_humaneval(run: Run) -> None:
    result = run(
        """
        from typing import List
        import collections, heapq, itertools, math, re, string

        def has_close_elements(numbers: List[float], threshold: float) -> bool:
            return any(abs(a - b) < threshold for a, b in itertools.combinations(numbers, 2))

        def check(candidate):
            assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True
            assert candidate([1.0, 2.0, 3.0], 0.5) == False

        check(has_close_elements)
        """
    )
    output_of(result)


def test_the_standard_library_works(run: Run) -> None:
    code = """
        import asyncio, ctypes, decimal, hashlib, json, sqlite3, ssl, tempfile, threading, zoneinfo
        import multiprocessing, concurrent.futures, subprocess
        if __name__ == "__main__":
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                assert list(pool.map(abs, range(-3, 0))) == [3, 2, 1]
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(abs, [-1, -2]) == [1, 2]
            assert asyncio.run(asyncio.sleep(0, "slept")) == "slept"
            with tempfile.NamedTemporaryFile("w+") as file:
                file.write("kept"); file.seek(0); assert file.read() == "kept"
            assert subprocess.run(["/bin/sh", "-c", "echo shell"], capture_output=True).stdout == b"shell\\n"
            print("all")
    """
    assert output_of(run(code)) == "all\n"


def test_only_the_standard_library_can_be_imported(run: Run) -> None:
    code = """
        import importlib.util
        print([name for name in ("pip", "setuptools", "numpy", "privcode") if importlib.util.find_spec(name)])
    """
    assert output_of(run(code)) == "[]\n"


def test_other_languages_are_unsupported(run: Run) -> None:
    result = run("puts 1", language="ruby")
    assert (result.outcome, result.exit_code, result.duration_s) == (Outcome.UNSUPPORTED_LANGUAGE, None, None)


# What a program may not do: time, memory, output ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal, time\nfor s in range(1, 32):\n  if s not in (9, 19): signal.signal(s, signal.SIG_IGN)\n"
        "while True: time.sleep(1)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import os, sys; sys.stdout.close(); os.close(2)\nwhile True: pass",
    ],
    ids=["loop", "sleep", "ignores-signals", "stops-itself", "closes-its-output"],
)
def test_time_limit(run: Run, code: str) -> None:
    began = time.monotonic()
    result = run(code, time_limit_s=0.5)
    assert (result.outcome, result.exit_code) == (Outcome.TIMED_OUT, None)
    assert result.duration_s == pytest.approx(0.5, abs=0.4)
    assert time.monotonic() - began < 4


def test_output_before_the_time_limit_is_kept(run: Run) -> None:
    result = run("print('begun', flush=True)\nwhile True: pass", time_limit_s=0.5)
    assert (result.outcome, result.stdout) == (Outcome.TIMED_OUT, "begun\n")


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(10**9)",
        "x = []\nwhile True: x.append(bytearray(10**6))",
        "import os, time\nfor _ in range(6):\n  if not os.fork():\n    x = bytearray(60 << 20); time.sleep(30)\n"
        "time.sleep(30)",
    ],
    ids=["at-once", "by-and-by", "shared-among-processes"],
)
def test_memory_limit(run: Run, code: str) -> None:
    began = time.monotonic()
    assert run(code, memory_mib=128, time_limit_s=20).outcome is Outcome.OUT_OF_MEMORY
    assert time.monotonic() - began < 15


def test_memory_that_processes_share_counts_once(run: Run) -> None:
    code = """
        import os, time
        x = bytearray(60 << 20)
        children = [pid for _ in range(6) if (pid := os.fork()) or time.sleep(0.6) or os._exit(0)]
        for pid in children: os.waitpid(pid, 0)
    """
    output_of(run(code, memory_mib=128))


def test_killed_by_the_kernel_counts_as_memory(run: Run) -> None:
    assert run("import os; os.kill(os.getpid(), 9)").outcome is Outcome.OUT_OF_MEMORY


@pytest.mark.parametrize("descriptor", [1, 2])
def test_output_limit_is_enforced_at_once(run: Run, descriptor: int) -> None:
    began = time.monotonic()
    result = run(f"import os\nwhile True: os.write({descriptor}, b'x' * 65536)", output_kib=8, time_limit_s=30)
    assert (result.outcome, result.exit_code) == (Outcome.OUTPUT_LIMIT, None)
    assert time.monotonic() - began < 3
    assert len((result.stdout, result.stderr)[descriptor - 1]) == 8 * 1024


def test_output_of_exactly_the_limit_passes(run: Run) -> None:
    assert len(output_of(run("print('x' * 8191)", output_kib=8))) == 8192
    assert run("print('x' * 8192)", output_kib=8).outcome is Outcome.OUTPUT_LIMIT


def test_fork_bomb(run: Run) -> None:
    result = run(FORK_BOMB, processes=12, time_limit_s=1)
    assert (result.outcome, result.stdout) == (Outcome.TIMED_OUT, "11\n")


def test_working_directory_is_bounded(run: Run) -> None:
    code = """
        written = 0
        try:
            for number in range(100):
                with open(f"file{number}", "wb", buffering=0) as file:
                    written += file.write(bytes(256 * 1024))
        except OSError as error:
            print(error.strerror, written <= 2 << 20)
    """
    assert output_of(run(code, file_size_mib=2)) == "No space left on device True\n"

"""Ten languages through the real runner and the real tool chains of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import httpx
import pytest
from language_cases import CASES
from sandbox_runner import Run, Runner, output_of

from privcode.languages import LANGUAGES
from privcode.results import Outcome
from privcode.sandbox import LanguageStatus, RunnerClient

# Other sandboxes differ in how they start Python.
pytestmark = pytest.mark.parametrize("runner", ["bubblewrap"], indirect=True, scope="session")

COMPILED = ("typescript", "java", "cpp", "rust", "csharp", "swift")
Needs = Callable[[str], None]
each_language = pytest.mark.parametrize("language", LANGUAGES)
each_compiled = pytest.mark.parametrize("language", COMPILED)
each_with_libraries = pytest.mark.parametrize("language", [name for name in CASES if CASES[name].library])


@pytest.fixture(scope="session")
def statuses(runner: Runner) -> Mapping[str, LanguageStatus]:
    return {status.language: status for status in RunnerClient(runner.socket).languages()}


@pytest.fixture
def needs(statuses: Mapping[str, LanguageStatus]) -> Needs:
    """Skip unless the runner executes the language."""

    def check(language: str) -> None:
        if statuses[language].missing is not None:
            pytest.skip(f"{language} IS NOT TESTED: {statuses[language].missing}; `make toolchains` gets what it can")

    return check


# Which there are ------------------------------------------------------------------------------------------------------


def test_each_of_the_ten_has_a_version_or_a_reason(runner: Runner) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(runner.socket)), base_url="http://runner") as client:
        found = client.get("/v1/languages", timeout=120).json()
    assert [status["language"] for status in found] == list(LANGUAGES)
    for status in found:
        assert (status["version"] is None) is (status["missing"] is not None), status
        assert status["version"] or status["missing"], status


def test_a_language_without_a_tool_chain_is_unsupported(run: Run, statuses: Mapping[str, LanguageStatus]) -> None:
    missing = [language for language, status in statuses.items() if status.missing is not None]
    if not missing:
        pytest.skip("every tool chain is there")
    for language in missing:
        result = run(CASES[language].exits, language=language)
        assert (result.outcome, result.exit_code) == (Outcome.UNSUPPORTED_LANGUAGE, None)


# What each does, under the default limits -----------------------------------------------------------------------------


@each_language
def test_input_files_and_unicode(run: Run, needs: Needs, language: str) -> None:
    needs(language)
    result = run(CASES[language].greets, language=language, stdin="naïve 漢字\n", files={"data/words.txt": "Wörter"})
    assert output_of(result).rstrip("\n") == "Grüße 🦊 naïve 漢字 Wörter"
    assert result.stderr == ""
    assert (result.compile_s is not None) is (language in COMPILED)


@each_language
def test_an_ordinary_program_with_threads_fits_the_limits(run: Run, needs: Needs, language: str) -> None:
    needs(language)
    assert output_of(run(CASES[language].busy, language=language)) == "36\n"


@each_language
def test_the_exit_code_decides(run: Run, needs: Needs, language: str) -> None:
    needs(language)
    ended = run(CASES[language].exits, language=language)
    assert (ended.outcome, ended.exit_code, ended.signal) == (Outcome.FAILED, 3, None)
    expected = run(CASES[language].exits, language=language, expected_exit=3)
    assert (expected.outcome, expected.exit_code) == (Outcome.PASSED, 3)


@each_language
def test_what_is_no_program_fails_with_the_tools_words(run: Run, needs: Needs, language: str) -> None:
    needs(language)
    result = run(CASES[language].broken, language=language)
    assert result.outcome is Outcome.FAILED
    assert CASES[language].complaint in result.stderr
    assert (result.duration_s is None, result.compile_s is not None) == (language in COMPILED,) * 2


@each_language
def test_an_endless_loop_times_out(run: Run, needs: Needs, language: str) -> None:
    needs(language)
    result = run(CASES[language].endless, language=language, time_limit_s=0.5)
    assert (result.outcome, result.exit_code) == (Outcome.TIMED_OUT, None)
    assert result.duration_s == pytest.approx(0.5, abs=0.4)


@each_language
def test_memory_runs_out(run: Run, needs: Needs, language: str) -> None:
    needs(language)
    result = run(CASES[language].hungry, language=language, memory_mib=256, time_limit_s=20)
    assert result.outcome is Outcome.OUT_OF_MEMORY, result


# Compilers ------------------------------------------------------------------------------------------------------------


@each_compiled
def test_no_exit_code_is_expected_of_a_compiler(run: Run, needs: Needs, language: str) -> None:
    needs(language)
    exit_code = run(CASES[language].broken, language=language).exit_code
    assert exit_code
    assert run(CASES[language].broken, language=language, expected_exit=exit_code).outcome is Outcome.FAILED


@each_with_libraries
def test_a_library_passes_by_being_compiled(run: Run, needs: Needs, language: str) -> None:
    needs(language)
    case = CASES[language]
    assert case.library
    assert case.bad_library
    assert output_of(run(case.library, language=language)) == ""
    broken = run(case.bad_library, language=language)
    assert (broken.outcome, broken.duration_s) == (Outcome.FAILED, None)


def test_compiling_has_its_own_time(run: Run, needs: Needs) -> None:
    needs("cpp")
    result = run("#include <iostream>\nint main() {}", language="cpp", time_limit_s=0.2)
    output_of(result)
    assert result.compile_s is not None
    assert result.duration_s is not None
    assert result.duration_s < 0.2 < result.compile_s


ENDLESS_CONSTANT = """
    constexpr unsigned endless(unsigned n) { for (unsigned m = 0; m < 200000; m++) n += m; return n; }
    template <unsigned N> struct All { static constexpr unsigned value = endless(N) + All<N - 1>::value; };
    template <> struct All<0> { static constexpr unsigned value = 0; };
    int main() { return All<800>::value; }
"""
ENDLESS_TEMPLATE = "template <int N> struct All { All<N + 1> next; }; int main() { All<0> all; }"
WIDE_TEMPLATE = """
    template <int N, int M> struct All { All<N - 1, 2 * M> left; All<N - 1, 2 * M + 1> right; };
    template <int M> struct All<0, M> {};
    int main() { All<25, 0> all; }
"""


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("cpp", ENDLESS_CONSTANT),
        ("cpp", ENDLESS_TEMPLATE),
        ("cpp", WIDE_TEMPLATE),
        ("cpp", '#include "/dev/zero"\nint main() {}'),
        ("cpp", '#include "/program/main.cpp"\n#include "/program/main.cpp"\nint main() {}'),
        ("rust", "const N: u64 = { let mut n = 0u64; while n < u64::MAX { n += 1; } n }; fn main() { let _ = N; }"),
        ("rust", "macro_rules! all { ($($t:tt)*) => { all!($($t)* $($t)* 1) } } fn main() { all!(1); }"),
        ("rust", 'const ALL: &[u8] = include_bytes!("/dev/zero"); fn main() { println!("{}", ALL.len()) }'),
    ],
    ids=["constant", "deep", "wide", "device", "itself", "rust-constant", "rust-macro", "rust-device"],
)
def test_a_compiler_bomb_ends_by_the_limits(run: Run, needs: Needs, language: str, code: str) -> None:
    needs(language)
    began = time.monotonic()
    result = run(code, language=language, compile_limit_s=2, compile_memory_mib=512)
    assert result.outcome in (Outcome.TIMED_OUT, Outcome.FAILED, Outcome.OUT_OF_MEMORY), result
    assert result.duration_s is None
    assert time.monotonic() - began < 5


def test_a_compiler_that_says_too_much_has_failed(run: Run, needs: Needs) -> None:
    needs("cpp")
    result = run(f"int main() {{ {'x' * 5000}; }}", language="cpp", output_kib=2)
    assert (result.outcome, result.exit_code, result.duration_s) == (Outcome.FAILED, None, None)
    assert "error: " in result.stderr


def test_a_memory_error_that_a_compiler_quotes_is_none(run: Run, needs: Needs) -> None:
    needs("cpp")
    result = run("int main() { throw std::bad_alloc(); }", language="cpp")
    assert "std::bad_alloc" in result.stderr
    assert result.outcome is Outcome.FAILED


# Languages of their own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        'const path = require("path"); console.log(path.basename(__filename));',
        'import path from "node:path"; console.log(path.basename(import.meta.filename ?? "main"));',
        'export const name = "main";\nconsole.log(name);',
        "console.log(await Promise.resolve('main'))",
        "const name = await Promise.resolve('main')\nconsole.log(name)",
    ],
    ids=["commonjs", "import", "export", "await", "await-in-a-declaration"],
)
def test_javascript_of_both_kinds(run: Run, needs: Needs, code: str) -> None:
    needs("javascript")
    assert output_of(run(code, language="javascript")).startswith("main")


@pytest.mark.parametrize(
    "code",
    [
        'import { basename } from "path"; import * as os from "os"; console.log(basename("a/main"), typeof os.EOL)',
        'const path = require("path"); console.log(path.basename("a/main") as string)',
        'const name: string = await Promise.resolve("main")\nconsole.log(name)\nexport {}',
    ],
    ids=["import", "commonjs", "await"],
)
def test_typescript_of_all_kinds(run: Run, needs: Needs, code: str) -> None:
    needs("typescript")
    for check_types in (False, True):
        assert output_of(run(code, language="typescript", check_types=check_types)).startswith("main")


def test_type_errors_stop_typescript_only_if_asked(run: Run, needs: Needs) -> None:
    needs("typescript")
    code = 'const number: number = "text"; console.log(number)'
    assert output_of(run(code, language="typescript")) == "text\n"
    checked = run(code, language="typescript", check_types=True)
    assert (checked.outcome, checked.duration_s) == (Outcome.FAILED, None)
    assert "error TS2322" in checked.stderr


@pytest.mark.parametrize(
    "code",
    [
        'declare(strict_types=1);\necho "ran", PHP_EOL;',
        '<?php echo "ran", PHP_EOL;',
        "#!/usr/bin/env php\n<?php echo 'ran', PHP_EOL;",
        "<?= 'ran' ?>\n\n",
        "$xml = '<?xml version=\"1.0\"?>';\necho 'ran', PHP_EOL;",
    ],
    ids=["no-tag", "tag", "interpreter-line", "template", "another-tag"],
)
def test_php_with_and_without_its_tag(run: Run, needs: Needs, code: str) -> None:
    needs("php")
    assert output_of(run(code, language="php")) == "ran\n"


MAIN = 'public static void main(String[] arguments) { System.out.println("ran"); }'


@pytest.mark.parametrize(
    "code",
    [
        f"public class AnyName {{ {MAIN} }}",
        f"package org.example.app;\npublic class AnyName {{ {MAIN} }}",
        f"class First {{ int n; }}\nclass Second {{ {MAIN} }}",
        f"public class Shown {{ }}\nclass Second {{ {MAIN} }}",
        f"class NotPublic {{ {MAIN} }}",
        f"interface Runs {{ {MAIN} }}",
        f"record Point(int x, int y) {{ {MAIN} }}",
        f'// class Commented {{\nclass Real {{ String brace = "}}}} class X {{"; {MAIN} }}',
        f"import java.util.*;\npublic class Raw {{ List all = new ArrayList(); {{ all.add(1); }} {MAIN} }}",
    ],
    ids=["public", "package", "second", "beside-public", "none-public", "interface", "record", "comment", "warning"],
)
def test_java_classes_of_any_name(run: Run, needs: Needs, code: str) -> None:
    needs("java")
    result = run(code, language="java")
    assert (output_of(result), result.stderr) == ("ran\n", "")


@pytest.mark.parametrize("name", ["A" * 300, "Ä" * 200])
def test_a_java_class_whose_name_no_file_can_have_fails(run: Run, needs: Needs, name: str) -> None:
    needs("java")
    assert run(f"public class {name} {{ {MAIN} }}", language="java").outcome is Outcome.FAILED


def test_a_java_package_longer_than_an_argument_is_no_failure_of_ours(run: Run, needs: Needs) -> None:
    needs("java")
    code = f"package {'a.' * 100_000}b;\nclass Main {{ {MAIN} }}"
    assert run(code, language="java").outcome in (Outcome.FAILED, Outcome.PASSED)


def test_too_many_threads_are_not_taken_for_memory(run: Run, needs: Needs) -> None:
    needs("java")
    code = """
        class Threads {
            public static void main(String[] arguments) throws Exception {
                for (int n = 0; n < 100; n++) {
                    Thread thread = new Thread(java.util.concurrent.locks.LockSupport::park);
                    thread.setDaemon(true);
                    thread.start();
                }
            }
        }
    """
    result = run(code, language="java")
    assert result.outcome is Outcome.FAILED, result
    assert "unable to create native thread" in result.stderr


def test_rust_checks_for_overflow(run: Run, needs: Needs) -> None:
    needs("rust")
    code = 'fn main() { let n: u8 = "255".parse().unwrap(); println!("{}", n + 1) }'
    assert "attempt to add with overflow" in run(code, language="rust").stderr


def test_only_what_a_language_needs_is_shown(run: Run, needs: Needs) -> None:
    needs("shell")
    shown = set(output_of(run("ls / /etc /usr", language="shell")).split())
    assert {"program", "alternatives", "bin"} < shown
    assert not {"home", "root", "passwd", "include", "local", "src"} & shown

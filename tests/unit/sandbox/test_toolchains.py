"""Which tool chains count as there, and what each makes of a program. Tools are real executables of the test's own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from privcode.languages import LANGUAGES
from privcode.specs import ExecutionLimits
from services.sandbox.core import toolchains
from services.sandbox.core.toolchains import TOOLCHAINS, Installed, Source, Toolchains

Tool = Callable[..., Path]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Make a tool of a machine that has no others. ``does``: its shell commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(toolchains, "_TOOL_PATH", str(folder))

    def make(name: str, does: str = "echo 'version 1'") -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{does}\n")
        path.chmod(0o755)
        return path

    return make


def works(_: Installed) -> None:
    return None


def missing(found: Toolchains) -> dict[str, str | None]:
    return {status.language: status.missing for status in found.statuses()}


# What is installed ----------------------------------------------------------------------------------------------------


def test_every_language_has_an_entry() -> None:
    assert {"python", *TOOLCHAINS} == set(LANGUAGES)


def test_what_is_not_installed_is_named(tool: Tool) -> None:
    tool("mono")
    found = Toolchains(probe=works, python="3.11.7")
    assert found.get("csharp") is None
    assert missing(found) == {
        "python": None,
        "javascript": "node not installed",
        "typescript": "node, tsc not installed",
        "java": "java, javac not installed",
        "cpp": "g++ not installed",
        "rust": "rustc not installed",
        "php": "php not installed",
        "shell": "bash not installed",
        "csharp": "mcs not installed",
        "swift": "swiftc not installed",
    }


def test_what_is_installed_has_a_version_and_paths_behind_links(tool: Tool, tmp_path: Path) -> None:
    real = tool("gcc-99", "echo; echo ' g++ 99.1 '; echo 'Copyright'")
    (tmp_path / "bin" / "g++").symlink_to(real)
    found = Toolchains(probe=works, python="3.11.7")
    installed = found.get("cpp")
    assert installed is not None
    assert (installed.version, installed.paths) == ("g++ 99.1", {"g++": str(real)})
    versions = {status.language: status.version for status in found.statuses()}
    assert (versions["cpp"], versions["python"], versions["rust"]) == ("g++ 99.1", "3.11.7", None)


@pytest.mark.parametrize("does", ["exit 0", "exec sleep 60"])
def test_a_tool_that_does_not_tell_its_version_may_still_work(
    tool: Tool, does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchains, "_VERSION_SECONDS", 0.2)
    tool("bash", does)
    installed = Toolchains(probe=works, python="3.11.7").get("shell")
    assert installed is not None
    assert installed.version == "unknown"


def test_what_fails_its_probe_is_not_there_and_says_why(tool: Tool) -> None:
    tool("bash")
    found = Toolchains(probe=lambda _: "its probe ended as failed: no locale", python="3.11.7")
    assert found.get("shell") is None
    (status,) = [status for status in found.statuses() if status.language == "shell"]
    assert (status.version, status.missing) == (None, "its probe ended as failed: no locale")


def test_each_is_tried_once_and_only_when_asked_for(tool: Tool) -> None:
    tool("bash")
    tool("php")
    tried: list[str] = []

    def probe(installed: Installed) -> None:
        time.sleep(0.05)  # long enough for all threads to be waiting
        tried.append(installed.toolchain.tools[0])

    found = Toolchains(probe=probe, python="3.11.7")
    assert tried == []
    with ThreadPoolExecutor(4) as pool:
        assert len({id(installed) for installed in pool.map(found.get, ["shell"] * 8)}) == 1
    assert tried == ["bash"]
    found.statuses()
    found.statuses()
    assert tried == ["bash", "php"]


@pytest.mark.parametrize("language", ["ruby", "", "C++", "python"])
def test_other_languages_have_no_tool_chain(language: str) -> None:
    assert Toolchains(probe=works, python="3.11.7").get(language) is None


def test_folders_are_those_that_there_are(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool("bash")
    (tmp_path / "etc-17").mkdir()
    patterns = (f"{tmp_path}/etc-*", f"{tmp_path}/gone", f"{tmp_path}/bin/bash")
    entry = dataclasses.replace(TOOLCHAINS["shell"], folders=patterns)
    monkeypatch.setattr(toolchains, "TOOLCHAINS", {**TOOLCHAINS, "shell": entry})
    installed = Toolchains(probe=works, python="3.11.7").get("shell")
    assert installed is not None
    assert installed.folders == [f"{tmp_path}/etc-17", f"{tmp_path}/bin/bash"]


# What becomes of a program --------------------------------------------------------------------------------------------


def commands(language: str, code: str, **limits: float) -> tuple[Source, list[str], list[str]]:
    chain = TOOLCHAINS[language]
    paths = {name: f"/usr/bin/{name}" for name in chain.tools}
    installed = Installed(toolchain=chain, paths=paths, folders=(), version="1")
    source, asked = chain.source(code), ExecutionLimits.model_validate(limits)
    return source, installed.compile_command(source, asked), installed.run_command(source, asked)


def test_a_program_is_compiled_and_run() -> None:
    source, compile_it, run_it = commands("cpp", "int main() {}")
    assert source == Source(file="main.cpp", code="int main() {}", entry="main.cpp")
    assert (compile_it[0], compile_it[-3:]) == ("/usr/bin/g++", ["-o", "/build/main", "/program/main.cpp"])
    assert run_it == ["/build/main"]


def test_limits_reach_the_commands() -> None:
    _, compile_it, run_it = commands(
        "java", "class A { static void main(String[] a) {} }", memory_mib=100, compile_memory_mib=300
    )
    assert "-J-Xmx300m" in compile_it
    assert ("-Xmx100m" in run_it, run_it[-1]) == (True, "A")


def test_types_are_checked_if_asked() -> None:
    _, quick, _ = commands("typescript", "let a = 1")
    _, checked, _ = commands("typescript", "let a = 1", check_types=True)
    assert ("--noCheck" in quick, "--noCheck" in checked) == (True, False)


@pytest.mark.parametrize(
    ("language", "code", "is_program"),
    [
        ("cpp", "int main(int argc, char** argv) {}", True),
        ("cpp", "auto main () -> int {}", True),
        ("cpp", "// call it from main()\n/* int main() {} */ int sum();", False),
        ("cpp", "int domain() { return 1; }", False),
        ("rust", "pub fn main() {}", True),
        ("rust", "/// fn main() {}\npub fn sum() {}", False),
        ("rust", "fn mainly() {}", False),
        ("csharp", "class A { public static int Main(string[] a) { return 0; } }", True),
        ("csharp", "class A { static async System.Threading.Tasks.Task<int> Main() { } }", True),
        ("csharp", "class A { void Main() {} /* static void Main() */ }", False),
        ("java", "class A { static void main(String[] a) {} }", True),
        ("java", "class A {}", False),
    ],
)
def test_without_an_entry_point_it_is_compiled_only(language: str, code: str, is_program: bool) -> None:
    source, compile_it, run_it = commands(language, code)
    assert (source.entry is not None, bool(run_it)) == (is_program, is_program)
    assert compile_it


@pytest.mark.parametrize(
    ("language", "code", "file"),
    [
        ("javascript", "const fs = require('fs')", "main.js"),
        ("javascript", "import fs from 'fs'", "main.mjs"),
        ("javascript", "import 'fs'", "main.mjs"),
        ("javascript", "import { a,\n b } from 'fs'", "main.mjs"),
        ("javascript", "import * as fs from 'fs'", "main.mjs"),
        ("javascript", "export default 1", "main.mjs"),
        ("javascript", "const x = await f()", "main.mjs"),
        ("javascript", "for await (const x of f()) {}", "main.mjs"),
        ("javascript", "async function f() {\n  await g()\n}", "main.js"),
        ("javascript", "import('fs').then(f); importAll(); exports.a = 1; awaited()", "main.js"),
        ("typescript", "import fs from 'fs'\nexport const a = 1", "main.ts"),
        ("typescript", "const a: number = await f()", "main.mts"),
    ],
)
def test_kinds_of_javascript(language: str, code: str, file: str) -> None:
    assert TOOLCHAINS[language].source(code).file == file


@pytest.mark.parametrize(
    ("code", "is_changed"),
    [("echo 1;", True), ("$a = '<?xml';", True), ("<?php echo 1;", False), ("<h1><?= 1 ?>", False), ("<?PHP\n", False)],
)
def test_php_gets_its_tag(code: str, is_changed: bool) -> None:
    assert TOOLCHAINS["php"].source(code).code == (f"<?php\n{code}" if is_changed else code)


@pytest.mark.parametrize("language", TOOLCHAINS)
def test_reading_a_hostile_source_takes_linear_time(language: str) -> None:
    began = time.perf_counter()
    for part in (
        "\n",
        " ",
        "/*",
        "//",
        "import ",
        "export ",
        "const x =\n",
        "static ",
        "static a.",
        "main ",
        "<?",
        "a",
    ):
        TOOLCHAINS[language].source(part * 50_000)
    assert time.perf_counter() - began < 4

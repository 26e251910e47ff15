"""What compiles and runs a program of each language: one declarative entry a language, and what of it is installed.

In commands, ``{name}`` stands for a tool's path, and ``{source}``, ``{build}`` (a writable folder), ``{entry}``,
``{memory_mib}`` and ``{compile_memory_mib}`` for what they say.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from privcode.languages import LANGUAGES
from privcode.sandbox import LanguageStatus
from privcode.specs import ExecutionLimits
from services.sandbox.core.java import java_source

log = logging.getLogger(__name__)

PROGRAM_FOLDER: Final = "/program"
BUILD_FOLDER: Final = "/build"
_TOOL_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_VERSION_SECONDS: Final = 20
# Links from one name of a tool to another (cc to gcc).
_ALTERNATIVES: Final = "/etc/alternatives"
# Of Node.js's own builds; and parts of Debian's node itself.
_NODE_FOLDERS: Final = ("/usr/local/bin/node", "/usr/local/lib/node_modules", "/usr/share/nodejs")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A program as its tool chain wants it. ``entry``: what runs it (a class, or just its file); None: a library,
    which is compiled and not run, as a Python module that only defines passes by being imported."""

    file: str
    code: str
    entry: str | None


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """One language. ``address_space``: whether its programs bear a limit on it; garbage collectors reserve gigabytes
    that they never use, and PHP has a limit of its own. ``folders``: patterns of folders and files of the host, shown
    read-only beside the system's. ``memory_sign``: what its programs write when memory runs out. ``probe``: a program
    that must pass for the tool chain to count as there."""

    tools: tuple[str, ...]
    version: tuple[str, ...]
    source: Callable[[str], Source]
    run: tuple[str, ...]
    compile: tuple[str, ...] = ()
    compile_checked: tuple[str, ...] = ()
    compile_library: tuple[str, ...] = ()
    address_space: bool = True
    folders: tuple[str, ...] = ()
    memory_sign: re.Pattern[str] | None = None
    probe: str


def _always(file: str, code: str) -> Source:
    return Source(file=file, code=code, entry=file)


def _where_main(file: str, main: re.Pattern[str], code: str) -> Source:
    return Source(file=file, code=code, entry=file if main.search(_COMMENT.sub(" ", code)) else None)


def _javascript(code: str) -> Source:
    return _always("main.mjs" if _ES_MODULE.search(code) or _TOP_AWAIT.search(code) else "main.js", code)


def _typescript(code: str) -> Source:
    # The compiler turns imports into what CommonJS has, where a program may use both them and require().
    module = "m" if _TOP_AWAIT.search(code) else ""
    return Source(file=f"main.{module}ts", code=code, entry=f"main.{module}js")


def _php(code: str) -> Source:
    # Without the tag PHP prints the program instead of running it.
    return _always("main.php", code if _PHP_TAG.search(code) else f"<?php\n{code}")


_ES_MODULE: Final = re.compile(r"^[ \t]*(?:import\s+(?:[\w*{]|[\"'])|export\s)", re.MULTILINE)
# At the start of a line, so not in a function; only an ES module may have it.
_TOP_AWAIT: Final = re.compile(r"^(?:(?:(?:export\s+)?(?:const|let|var)\s[^=\n]*=|for)\s*)?\bawait\b", re.MULTILINE)
_PHP_TAG: Final = re.compile(r"<\?(?:php\b|=)", re.IGNORECASE)
_COMMENT: Final = re.compile(r"//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_C_MAIN: Final = re.compile(r"\bmain\s*\(")
_RUST_MAIN: Final = re.compile(r"\bfn\s+main\s*\(")
_CSHARP_MAIN: Final = re.compile(r"\bstatic\s+(?:async\s+)?[\w.<>]+\s+Main\s*\(")

_TSC: Final = (
    *("{node}", "{tsc}", "--target", "es2022", "--module", "nodenext", "--outDir", "{build}", "--pretty", "false"),
    "{source}",
)
_NODE_MEMORY: Final = re.compile(r"JavaScript heap out of memory|Array buffer allocation failed")
# Their number of threads, and so of processes, would grow with the machine.
_JVM: Final = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:ActiveProcessorCount=2", "-XX:-UsePerfData")
_JAVAC: Final = (
    *("{javac}", "-J-Xmx{compile_memory_mib}m", *(f"-J{flag}" for flag in _JVM)),
    *("-encoding", "UTF-8", "-proc:none", "-Xlint:none", "-XDsuppressNotes", "-d", "{build}", "{source}"),
)
_CPP: Final = ("{g++}", "-std=gnu++20", "-O1", "-w", "-fmax-errors=20")
# Optimized a little; yet checked for overflow, as without any option.
_RUSTC: Final = (
    *("{rustc}", "--edition", "2021", "-Awarnings", "-Copt-level=1", "-Cdebug-assertions=on", "-Cstrip=debuginfo"),
    *("--out-dir", "{build}", "{source}"),
)
_MCS: Final = ("{mcs}", "-nologo", "-warn:0", "-r:System.Numerics,Microsoft.CSharp")

# Python is not here: it is the runner's own interpreter (see interpreter.py).
TOOLCHAINS: Final[Mapping[str, Toolchain]] = {
    "javascript": Toolchain(
        tools=("node",),
        version=("{node}", "--version"),
        source=_javascript,
        run=("{node}", "--max-old-space-size={memory_mib}", "{source}"),
        address_space=False,
        folders=_NODE_FOLDERS,
        memory_sign=_NODE_MEMORY,
        probe="setTimeout(() => {}, 1)",
    ),
    "typescript": Toolchain(
        tools=("node", "tsc"),
        version=("{node}", "{tsc}", "--version"),
        source=_typescript,
        # The smallest library, since nothing is looked up in it.
        compile=(*_TSC, "--noCheck", "--noResolve", "--lib", "es5"),
        compile_checked=(*_TSC, "--skipLibCheck", "--types", "node", "--typeRoots", "{tsc}/../../../@types"),
        run=("{node}", "--max-old-space-size={memory_mib}", "{build}/{entry}"),
        address_space=False,
        folders=_NODE_FOLDERS,
        memory_sign=_NODE_MEMORY,
        probe="const answer: number = 42",
    ),
    "java": Toolchain(
        tools=("java", "javac"),
        version=("{javac}", "-version"),
        source=lambda code: Source(**java_source(code)),
        compile=_JAVAC,
        compile_library=_JAVAC,
        run=("{java}", "-Xmx{memory_mib}m", *_JVM, "-cp", "{build}", "{entry}"),
        address_space=False,
        folders=("/etc/java-*-openjdk",),
        memory_sign=re.compile(r"java\.lang\.OutOfMemoryError(?!: unable to create)"),
        probe="class Probe { public static void main(String[] arguments) {} }",
    ),
    "cpp": Toolchain(
        tools=("g++",),
        version=("{g++}", "--version"),
        source=partial(_where_main, "main.cpp", _C_MAIN),
        compile=(*_CPP, "-o", "{build}/main", "{source}"),
        compile_library=(*_CPP, "-c", "-o", "{build}/main.o", "{source}"),
        run=("{build}/main",),
        folders=("/usr/include", _ALTERNATIVES),
        memory_sign=re.compile(r"std::bad_alloc"),
        probe="#include <iostream>\nint main() {}",
    ),
    "rust": Toolchain(
        tools=("rustc",),
        version=("{rustc}", "--version"),
        source=partial(_where_main, "main.rs", _RUST_MAIN),
        compile=_RUSTC,
        compile_library=(*_RUSTC, "--crate-type", "lib", "--emit", "metadata"),
        run=("{build}/main",),
        folders=(_ALTERNATIVES,),
        memory_sign=re.compile(r"memory allocation of \d+ bytes failed"),
        probe="fn main() {}",
    ),
    "php": Toolchain(
        tools=("php",),
        version=("{php}", "--version"),
        source=_php,
        run=(
            *("{php}", "-d", "memory_limit={memory_mib}M", "-d", "display_errors=stderr", "-d", "log_errors=0"),
            "{source}",
        ),
        address_space=False,
        folders=("/etc/php",),
        memory_sign=re.compile(r"Allowed memory size of \d+ bytes exhausted"),
        probe="<?php exit(0);",
    ),
    "shell": Toolchain(
        tools=("bash",),
        version=("{bash}", "--version"),
        source=partial(_always, "main.sh"),
        run=("{bash}", "{source}"),
        folders=(_ALTERNATIVES,),
        memory_sign=re.compile(r"cannot allocate|Cannot allocate memory"),
        probe="true | cat",
    ),
    "csharp": Toolchain(
        tools=("mcs", "mono"),
        version=("{mono}", "--version"),
        source=partial(_where_main, "main.cs", _CSHARP_MAIN),
        compile=(*_MCS, "-out:{build}/main.exe", "{source}"),
        compile_library=(*_MCS, "-target:library", "-out:{build}/main.dll", "{source}"),
        run=("{mono}", "{build}/main.exe"),
        address_space=False,
        folders=("/etc/mono",),
        memory_sign=re.compile(r"System\.OutOfMemoryException"),
        probe="class Probe { static void Main() {} }",
    ),
    "swift": Toolchain(
        tools=("swiftc",),
        version=("{swiftc}", "--version"),
        source=partial(_always, "main.swift"),
        compile=("{swiftc}", "-module-cache-path", "{build}/modules", "-o", "{build}/main", "{source}"),
        run=("{build}/main",),
        folders=("/usr/include", _ALTERNATIVES),
        probe="let answer = 42",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A tool chain with its tools' paths, and those of its folders that there are."""

    toolchain: Toolchain
    paths: Mapping[str, str]
    folders: Sequence[str]
    version: str

    def compile_command(self, source: Source, limits: ExecutionLimits) -> list[str]:
        """Empty where there is nothing to compile."""
        chain = self.toolchain
        command = chain.compile_library if source.entry is None else chain.compile
        if limits.check_types and chain.compile_checked:
            command = chain.compile_checked
        return self._filled(command, source, limits)

    def run_command(self, source: Source, limits: ExecutionLimits) -> list[str]:
        """Empty where there is nothing to run."""
        return [] if source.entry is None else self._filled(self.toolchain.run, source, limits)

    def _filled(self, command: tuple[str, ...], source: Source, limits: ExecutionLimits) -> list[str]:
        values = {
            **self.paths, "source": f"{PROGRAM_FOLDER}/{source.file}", "build": BUILD_FOLDER, "entry": source.entry,
            "memory_mib": limits.memory_mib, "compile_memory_mib": limits.compile_memory_mib,
        }  # fmt: skip
        return [part.format_map(values) for part in command]


@dataclass(kw_only=True)
class _Finding:
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: bool = False
    installed: Installed | None = None
    missing: str | None = None


class Toolchains:
    """The tool chains of this machine, each looked for and tried at its first use. Safe to use from several threads.

    ``probe``: executes a tool chain's probe and returns None, or what went wrong. ``python``: version of the
    interpreter that has been tried already.
    """

    def __init__(self, *, probe: Callable[[Installed], str | None], python: str) -> None:
        self._probe = probe
        self._python = python
        self._findings = {language: _Finding() for language in TOOLCHAINS}

    def get(self, language: str) -> Installed | None:
        finding = self._findings.get(language)
        return None if finding is None else self._known(language, finding).installed

    def statuses(self) -> list[LanguageStatus]:
        found = []
        for language in LANGUAGES:
            if language == "python":
                found.append(LanguageStatus(language="python", version=self._python, missing=None))
                continue
            finding = self._known(language, self._findings[language])
            version = None if finding.installed is None else finding.installed.version
            found.append(
                LanguageStatus.model_validate({"language": language, "version": version, "missing": finding.missing})
            )
        return found

    def _known(self, language: str, finding: _Finding) -> _Finding:
        with finding.lock:
            if not finding.known:
                finding.installed, finding.missing = self._look_for(TOOLCHAINS[language])
                finding.known = True
                if finding.missing is not None:
                    log.warning("%s is not executed here: %s", language, finding.missing)
        return finding

    def _look_for(self, toolchain: Toolchain) -> tuple[Installed | None, str | None]:
        found = {tool: shutil.which(tool, path=_TOOL_PATH) for tool in toolchain.tools}
        absent = [tool for tool, path in found.items() if path is None]
        if absent:
            return None, f"{', '.join(absent)} not installed"
        # Behind links, since /etc is not in the sandbox.
        paths = {tool: str(Path(path).resolve()) for tool, path in found.items() if path is not None}
        folders = [str(path) for pattern in toolchain.folders for path in Path("/").glob(pattern.lstrip("/"))]
        installed = Installed(toolchain=toolchain, paths=paths, folders=folders, version=_version(toolchain, paths))
        failure = self._probe(installed)
        return (installed, None) if failure is None else (None, failure)


def _version(toolchain: Toolchain, paths: Mapping[str, str]) -> str:
    command = [part.format_map(paths) for part in toolchain.version]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=_VERSION_SECONDS, cwd="/", check=False, text=True, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return next((line.strip() for line in done.stdout.splitlines() if line.strip()), "unknown")

"""What an attack is, and the words by which its program tells what it tried and what came of it."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from privcode.results import Outcome
from privcode.specs import ExecutionLimits

BACKENDS: Final = ("bubblewrap", "zygote")
# Much time: what reads from a cold disk is not hanging. Attacks on the time limit have a short one of their own.
LIMITS: Final = ExecutionLimits(
    time_limit_s=30, memory_mib=128, processes=16, file_size_mib=2, output_kib=16, compile_limit_s=10
)
# A program's words: before each attempt, and after it.
TRIES, REFUSED, ESCAPED = "TRIES", "REFUSED", "ESCAPED"


class Wall(StrEnum):
    """What stands between a program and the host; the names are those of docs/threat-model.md."""

    FILES = "own files"
    PROCESSES = "own processes"
    NETWORK = "own network"
    IPC = "own IPC and host name"
    RIGHTS = "no rights"
    CALLS = "system call filter"
    LIMITS = "resource limits"
    MEMORY = "memory of all processes"
    WATCH = "supervision"
    PROTOCOL = "sealed protocol"
    FRESH = "a process of its own"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack, which must fail.

    ``tries``: for people. ``program``: may use the words and facts of :func:`program_text`. ``then``: executed after
    it, looks for what it left. ``ends``: outcomes of a failed attack. ``seconds``: its time limit.
    """

    name: str
    tries: str
    walls: tuple[Wall, ...]
    program: str
    then: str = ""
    language: str = "python"
    files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    ends: tuple[Outcome, ...] = (Outcome.PASSED,)
    seconds: float = LIMITS.time_limit_s
    machine: str = ""


Facts = Mapping[str, str | int]

_PYTHON: Final = '''
import os, sys, time, types
host = types.SimpleNamespace(**{facts!r})

def attempt(what, action, refusal=OSError):
    """An exception of another kind is a mistake in the attack, and ends it as a failure."""
    print("TRIES", what, flush=True)
    try:
        got = action()
    except refusal as error:
        print("REFUSED", what, repr(error), flush=True)
    else:
        print("ESCAPED", what, repr(got)[:200], flush=True)

def check(what, escaped):
    print("TRIES", what, flush=True)
    print("ESCAPED" if escaped else "REFUSED", what, flush=True)
'''


def program_text(program: str, *, language: str, facts: Facts) -> str:
    """``program`` with what it needs to know: ``facts`` about the host it attacks, as attributes of ``host`` in Python
    and as variables in a shell."""
    program = textwrap.dedent(program)
    if language == "python":
        return _PYTHON.format(facts=dict(facts)) + program
    if language == "shell":
        return "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in facts.items()) + program
    return program

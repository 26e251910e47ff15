"""From how an execution ended to its outcome."""

from __future__ import annotations

import signal
from typing import Final

from privcode.results import Outcome

# bwrap reports a death by signal as a shell does.
_SIGNAL_BASE: Final = 128


def outcome_of_exit(exit_code: int, *, stderr: str) -> Outcome:
    """Outcome of a program that ended by itself.

    Memory: Python's last line is a MemoryError, or SIGKILL, which inside the sandbox comes from the kernel's
    out-of-memory killer. Time: SIGXCPU, the CPU limit.
    """
    if exit_code == 0:
        return Outcome.PASSED
    if exit_code == _SIGNAL_BASE + signal.SIGXCPU:
        return Outcome.TIMED_OUT
    if exit_code == _SIGNAL_BASE + signal.SIGKILL or _last_line(stderr).split(":")[0] == "MemoryError":
        return Outcome.OUT_OF_MEMORY
    return Outcome.FAILED


def _last_line(text: str) -> str:
    lines = text.rstrip().rsplit("\n", 1)
    return lines[-1].strip()

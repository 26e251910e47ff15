"""From how an execution ended to its outcome."""

from __future__ import annotations

import re
import signal
from typing import Final

from privcode.results import Outcome

# bwrap reports a death by signal as a shell does.
_SIGNAL_BASE: Final = 128
_SIGN_CHARACTERS: Final = 4096


def signal_of_exit(exit_code: int) -> int | None:
    """The signal that an exit code above 128 stands for."""
    number = exit_code - _SIGNAL_BASE
    return number if number in signal.valid_signals() else None


def outcome_of_exit(exit_code: int, *, expected: int, stderr: str, memory_sign: re.Pattern[str] | None) -> Outcome:
    """Outcome of a program that ended by itself.

    Memory: the language's sign at the end of standard error, or SIGKILL, which inside the sandbox comes
    from the kernel's out-of-memory killer. Time: SIGXCPU, the CPU limit.
    """
    if exit_code == expected:
        return Outcome.PASSED
    number = signal_of_exit(exit_code)
    if number == signal.SIGXCPU:
        return Outcome.TIMED_OUT
    said_so = memory_sign is not None and memory_sign.search(stderr[-_SIGN_CHARACTERS:].rstrip()) is not None
    return Outcome.OUT_OF_MEMORY if said_so or number == signal.SIGKILL else Outcome.FAILED

"""A process without secrets in its environment. Imports next to nothing, so that it comes before everything else."""

from __future__ import annotations

import os
import sys
from typing import Final

# Taken before anything slow, in case the parent ends during start-up.
PARENT: Final = os.getppid()

# LC_CTYPE: Python sets it itself where no locale is given (PEP 538). DOCKER_CERT_PATH names a folder, it is no secret.
_KEPT: Final = frozenset(
    {
        *("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH"),
        *("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"),
    }
)


def scrub_environment() -> None:
    """Start this module again without any other variable, unless there is none.

    Clearing ``os.environ`` would not do: /proc/PID/environ keeps showing what a process was started with.
    """
    if set(os.environ) <= _KEPT:
        return
    kept = {name: value for name, value in os.environ.items() if name in _KEPT}
    os.execve(sys.executable, [sys.executable, "-m", "services.sandbox.runner", *sys.argv[1:]], kept)

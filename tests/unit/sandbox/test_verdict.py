from __future__ import annotations

import pytest

from privcode.results import Outcome
from services.sandbox.core.command import MEMORY_ERROR
from services.sandbox.core.verdict import outcome_of_exit


@pytest.mark.parametrize(
    ("exit_code", "stderr", "outcome"),
    [
        (0, "", Outcome.PASSED),
        (0, "MemoryError\n", Outcome.PASSED),
        (1, "", Outcome.FAILED),
        (1, "Traceback\nValueError: MemoryError\n", Outcome.FAILED),
        (1, "MemoryError\nThe above exception\nTypeError: x\n", Outcome.FAILED),
        (1, "Traceback\nMemoryError\n", Outcome.OUT_OF_MEMORY),
        (1, "Traceback\nMemoryError: at line 3\n\n", Outcome.OUT_OF_MEMORY),
        (137, "", Outcome.OUT_OF_MEMORY),
        (139, "", Outcome.FAILED),
        (152, "", Outcome.TIMED_OUT),
        (255, "", Outcome.FAILED),
    ],
)
def test_outcome_of_exit(exit_code: int, stderr: str, outcome: Outcome) -> None:
    assert outcome_of_exit(exit_code, expected=0, stderr=stderr, memory_sign=MEMORY_ERROR) is outcome

"""The transition table, written a second time: every pair that is not here must raise."""

from __future__ import annotations

from itertools import product

import pytest

from privcode.errors import Conflict
from privcode.states import JobState, LedgerState, StageState, State, require_transition

LEGAL: dict[type[State], str] = {
    JobState: """
        queued -> running cancelled failed
        running -> succeeded failed cancelling
        cancelling -> cancelled
    """,
    StageState: """
        pending -> queued cancelled skipped
        queued -> running cancelled failed
        running -> succeeded failed cancelled queued
    """,
    LedgerState: """
        reserved -> spent released
    """,
}
ALL: list[State] = [*JobState, *StageState, *LedgerState]


def legal() -> set[tuple[type[State], str, str]]:
    return {
        (kind, line.split(" -> ")[0].strip(), new)
        for kind, lines in LEGAL.items()
        for line in lines.strip().splitlines()
        for new in line.split(" -> ")[1].split()
    }


@pytest.mark.parametrize(
    ("current", "new"), list(product(ALL, ALL)), ids=lambda state: f"{type(state).__name__}.{state}"
)
def test_a_transition_is_legal_or_raises(current: State, new: State) -> None:
    if type(current) is type(new) and (type(current), current.value, new.value) in legal():
        require_transition(current, new)
        return
    with pytest.raises(Conflict, match=f"can't go from {current} to {new}") as caught:
        require_transition(current, new)
    assert caught.value.code == "illegal_transition"


def test_a_job_has_ended_exactly_when_nothing_can_follow() -> None:
    left = {current for kind, current, _ in legal() if kind is JobState}
    assert {state for state in JobState if state.ended} == set(JobState) - {JobState(name) for name in left}

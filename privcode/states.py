"""States of jobs and stages, and the only transitions there are."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from privcode.errors import Conflict


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class StageState(StrEnum):
    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class LedgerState(StrEnum):
    RESERVED = "reserved"
    SPENT = "spent"
    RELEASED = "released"


State = JobState | StageState | LedgerState

# A table for each kind: members of two string enumerations with one value are equal, and would share a dictionary key.
TRANSITIONS: Final[dict[type[State], dict[State, frozenset[State]]]] = {
    JobState: {
        JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
        JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLING}),
        JobState.CANCELLING: frozenset({JobState.CANCELLED}),
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELLED: frozenset(),
    },
    StageState: {
        StageState.PENDING: frozenset({StageState.QUEUED, StageState.CANCELLED, StageState.SKIPPED}),
        StageState.QUEUED: frozenset({StageState.RUNNING, StageState.CANCELLED, StageState.FAILED}),
        # Back to queued: the lease ran out, or the worker gave the stage back before it shut down.
        StageState.RUNNING: frozenset(
            {StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED, StageState.QUEUED}
        ),
        StageState.SUCCEEDED: frozenset(),
        StageState.FAILED: frozenset(),
        StageState.CANCELLED: frozenset(),
        StageState.SKIPPED: frozenset(),
    },
    LedgerState: {
        LedgerState.RESERVED: frozenset({LedgerState.SPENT, LedgerState.RELEASED}),
        LedgerState.SPENT: frozenset(),
        LedgerState.RELEASED: frozenset(),
    },
}


def require_transition(current: State, new: State) -> None:
    """Raise :class:`Conflict` unless ``current -> new`` is in the table of their kind."""
    if type(new) is not type(current) or new not in TRANSITIONS[type(current)][current]:
        raise Conflict(f"{type(current).__name__} can't go from {current} to {new}", code="illegal_transition")

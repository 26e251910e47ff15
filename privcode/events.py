"""A job's events: numbered without a gap, written in the transaction that they tell of."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from privcode.db.models import Event, Job
from privcode.results import JsonObject


def emit(session: Session, job_id: str, type_: str, data: JsonObject) -> None:
    """Append an event. Never anything private in ``data``: members see it."""
    sequence = session.scalars(
        update(Job).where(Job.id == job_id).values(last_event=Job.last_event + 1).returning(Job.last_event)
    ).one()
    session.add(Event(job_id=job_id, sequence=sequence, type=type_, data=data))
    session.flush()


def after(session: Session, job_id: str, *, sequence: int, limit: int) -> list[Event]:
    """The events after number ``sequence``, in order."""
    query = select(Event).where(Event.job_id == job_id, Event.sequence > sequence)
    return list(session.scalars(query.order_by(Event.sequence).limit(limit)))

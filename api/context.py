"""What every request needs: made once with the application, handed to routes as a dependency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request

from privcode.artifacts import ArtifactStore
from privcode.db.session import SessionFactory
from privcode.keys import KeyVerifier
from privcode.settings import Settings


@dataclass(frozen=True)
class Context:
    settings: Settings
    sessions: SessionFactory
    celery: Celery
    store: ArtifactStore
    keys: KeyVerifier


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


UseContext = Annotated[Context, Depends(_context)]

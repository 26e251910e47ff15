"""Engine and sessions. Whoever opens a session at the edge (a route, a task) commits; nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

SessionFactory = sessionmaker[Session]


def make_sessions(database_url: str) -> SessionFactory:
    """A session factory on a connection pool that survives a restart of the database."""
    engine: Engine = create_engine(database_url, pool_pre_ping=True, pool_size=5, max_overflow=15)
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def transaction(sessions: SessionFactory) -> Iterator[Session]:
    """A session that commits at the end of the block, and rolls back on any error."""
    with sessions.begin() as session:
        yield session


def migrate(database_url: str) -> None:
    """Bring the schema to the newest revision."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["database_url"] = database_url
    command.upgrade(config, "head")

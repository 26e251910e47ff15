"""Alembic's entry point; ``privcode.db.session.migrate`` hands the URL over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine

from privcode.db.models import Base

with create_engine(context.config.attributes["database_url"]).connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()

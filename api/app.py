"""The FastAPI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from celery import Celery
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

import privcode
from api.context import Context
from api.errors import install_error_handlers
from api.routes import artifacts, datasets, jobs, system
from privcode.artifacts import ArtifactStore
from privcode.db.session import SessionFactory, make_sessions, transaction
from privcode.keys import KeyVerifier
from privcode.queue import enqueue, make_celery
from privcode.reconcile import reconcile
from privcode.settings import Settings

log = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    context = Context(
        settings=settings,
        sessions=make_sessions(settings.database_url),
        celery=make_celery(settings.broker_url),
        store=ArtifactStore(settings.artifacts_dir),
        keys=KeyVerifier(),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reconciling = asyncio.create_task(_reconcile_forever(context.sessions, context.celery, settings))
        try:
            yield
        finally:
            reconciling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reconciling

    app = FastAPI(
        title="PrivCode",
        version=privcode.__version__,
        description="Fine-tune and share code LLMs on private code with differential privacy.",
        lifespan=lifespan,
    )
    app.state.context = context
    install_error_handlers(app)
    app.include_router(system.router)
    for router in (datasets.router, jobs.router, artifacts.router):
        app.include_router(router, prefix="/v1")
    return app


async def _reconcile_forever(sessions: SessionFactory, celery: Celery, settings: Settings) -> None:
    def once() -> None:
        with transaction(sessions) as session:
            wakes = reconcile(session, work_dir=settings.work_dir, wake_again_seconds=settings.wake_again_seconds)
        for wake in wakes:
            enqueue(celery, wake)

    while True:
        try:
            await run_in_threadpool(once)
        except Exception as error:
            # The database or the broker is away; /readyz says so, and the next round tries again.
            log.warning("reconcile failed: %s", type(error).__name__)
        await asyncio.sleep(settings.reconcile_seconds)

"""Health, readiness, and the models that a job may name."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.auth import UseCaller
from api.context import Context, UseContext
from api.schemas import ListObject, ModelObject
from privcode.db.session import transaction
from privcode.models import known_models
from privcode.sandbox import LanguageStatus, RunnerClient

router = APIRouter(tags=["system"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(context: UseContext, response: Response) -> dict[str, str]:
    """The service can take and run jobs; 503 with what is missing."""
    checks = {"database": _database(context), "broker": _broker(context), "sandbox": _sandbox(context)}
    if any(state != "ok" for state in checks.values()):
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return checks


@router.get("/v1/models", tags=["models"])
def list_models(context: UseContext, _: UseCaller) -> ListObject[ModelObject]:
    """The model references that a spec may use."""
    infos = known_models(context.settings.models_dir)
    return ListObject(data=[ModelObject(**info.model_dump()) for info in infos], has_more=False)


@router.get("/v1/sandbox/languages", tags=["sandbox"])
def list_languages(context: UseContext, _: UseCaller) -> ListObject[LanguageStatus]:
    """The languages whose candidates are executed, with the tool chain's version; or why they are not."""
    runner = RunnerClient(context.settings.sandbox_socket)
    return ListObject(data=runner.languages(), has_more=False)


def _database(context: Context) -> str:
    try:
        with transaction(context.sessions) as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return "unreachable"
    return "ok"


def _broker(context: Context) -> str:
    try:
        with context.celery.connection_for_write(connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
    except OSError:
        return "unreachable"
    except context.celery.connection_for_write().connection_errors:
        return "unreachable"
    return "ok"


def _sandbox(context: Context) -> str:
    return "ok" if context.settings.sandbox_socket.is_socket() else "unreachable"

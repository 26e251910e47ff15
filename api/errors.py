"""What an error means over HTTP: RFC 9457 problem+json with our stable ``code``. The only place that knows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from privcode.errors import PrivCodeError

log = logging.getLogger(__name__)

# By class name of the error or by code; a code's entry wins. Anything else of ours is a 500.
_STATUS: Final[Mapping[str, HTTPStatus]] = MappingProxyType(
    {
        "InvalidInput": HTTPStatus.UNPROCESSABLE_ENTITY,
        "NotFound": HTTPStatus.NOT_FOUND,
        "Conflict": HTTPStatus.CONFLICT,
        "BudgetExceeded": HTTPStatus.CONFLICT,
        "Unauthorized": HTTPStatus.UNAUTHORIZED,
        "Forbidden": HTTPStatus.FORBIDDEN,
        "SandboxUnavailable": HTTPStatus.SERVICE_UNAVAILABLE,
        "upload_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "not_json": HTTPStatus.BAD_REQUEST,
    }
)

_LONGEST_VALUE: Final = 200

_CODES: Final = MappingProxyType(
    {
        "extra_forbidden": "unknown_field",
        "missing": "missing_field",
        "json_invalid": "not_json",
        # Errors of our own validators.
        "unused_section": "unused_section",
        "privacy_without_mechanism": "privacy_without_mechanism",
    }
)


def _shown(value: Any) -> Any:
    """A value as it may stand in an answer: finite, and not long."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


def problem(
    status: HTTPStatus,
    *,
    code: str,
    detail: str,
    field: str | None = None,
    value: Any = None,
    errors: Sequence[Mapping[str, Any]] = (),
) -> JSONResponse:
    """An RFC 9457 answer; ``errors`` lists every wrong field where there are several."""
    body: dict[str, Any] = {
        "type": f"urn:privcode:problem:{code}",
        "title": status.phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if field is not None:
        body |= {"field": field, "value": _shown(value)}
    if errors:
        body["errors"] = list(errors)
    headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else None
    return JSONResponse(body, status_code=status, media_type="application/problem+json", headers=headers)


def validation_problem(errors: Sequence[Mapping[str, Any]]) -> JSONResponse:
    """One problem for pydantic's list of errors; the first one is its field and value."""
    listed = []
    for error in errors:
        location = [part for part in error["loc"] if part not in ("body", "query", "path", "header")]
        field = ".".join(str(part) for part in location) or "body"
        given = error.get("input")
        # A missing field's input is all that surrounds it.
        value = None if error["type"] == "missing" or isinstance(given, dict | bytes) else given
        message = str(error["msg"]).removeprefix("Value error, ")
        code = _CODES.get(error["type"], "invalid_value")
        listed.append({"code": code, "field": field, "value": _shown(value), "message": message})
    first = listed[0]
    if first["code"] == "not_json":
        return problem(HTTPStatus.BAD_REQUEST, code="not_json", detail="the body is not JSON", field="body")
    shown = "" if first["value"] is None else f" (got {first['value']!r})"
    return problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        code=first["code"],
        detail=f"{first['field']}: {first['message']}{shown}",
        field=first["field"],
        value=first["value"],
        errors=listed,
    )


def install_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(PrivCodeError)
    def ours(_: Request, error: PrivCodeError) -> JSONResponse:
        names = [error.code, *(base.__name__ for base in type(error).__mro__)]
        status = next((_STATUS[name] for name in names if name in _STATUS), HTTPStatus.INTERNAL_SERVER_ERROR)
        return problem(status, code=error.code, detail=error.message, field=error.field, value=error.value)

    @app.exception_handler(RequestValidationError)
    def request_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return validation_problem(error.errors())

    @app.exception_handler(ValidationError)
    def spec_invalid(_: Request, error: ValidationError) -> JSONResponse:
        return validation_problem(error.errors(include_url=False, include_context=False))

    @app.exception_handler(HTTPException)
    def http_error(_: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        return problem(status, code=status.phrase.lower().replace(" ", "_"), detail=str(error.detail))

    @app.exception_handler(Exception)
    def unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("unexpected %s", type(error).__name__)
        return problem(
            HTTPStatus.INTERNAL_SERVER_ERROR, code="internal_error", detail="something went wrong on our side"
        )

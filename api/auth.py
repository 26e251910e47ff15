"""Who makes a request: ``Authorization: Bearer KEY``."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.context import UseContext
from privcode.db.models import Artifact
from privcode.db.session import transaction
from privcode.errors import PrivCodeError
from privcode.keys import Caller
from privcode.recipes import Label

_bearer = HTTPBearer(auto_error=False, description="An API key, as printed at the first start.")


class Unauthorized(PrivCodeError):
    code = "unauthorized"


class Forbidden(PrivCodeError):
    code = "forbidden"


def authenticate(
    context: UseContext, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """Raises :class:`Unauthorized` without a key of ours."""
    if credentials is not None:
        with transaction(context.sessions) as session:
            caller = context.keys.verify(session, credentials.credentials)
        if caller is not None:
            return caller
    raise Unauthorized("send a valid API key as 'Authorization: Bearer KEY'")


def require_may_read(artifact: Artifact, caller: Caller, *, field: str, value: str) -> None:
    """Raises :class:`Forbidden` (``artifact_private``): ``private`` artifacts leave only to a privacy officer.

    ``field`` and ``value``: how the request named the artifact.
    """
    if artifact.label == Label.PRIVATE and caller.role != "privacy_officer":
        raise Forbidden(
            f"{field}: the {artifact.kind} of {value} is private; it leaves only to a privacy officer",
            code="artifact_private", field=field, value=value,
        )  # fmt: skip


UseCaller = Annotated[Caller, Depends(authenticate)]

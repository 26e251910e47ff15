"""Who makes a request: ``Authorization: Bearer KEY``."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.context import UseContext
from privcode.db.session import transaction
from privcode.errors import PrivCodeError
from privcode.keys import Caller

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


UseCaller = Annotated[Caller, Depends(authenticate)]

"""``Idempotency-Key``: a POST that is retried with the same key gets the first answer again and does nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Header
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from privcode.db.models import IdempotencyKey
from privcode.errors import Conflict
from privcode.results import JsonObject

UseIdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, description="Makes a retry of this POST safe."),
]


def once(
    session: Session,
    *,
    tenant_id: str,
    key: str | None,
    request_sha256: str,
    run: Callable[[], JsonObject],
) -> JsonObject:
    """``run()``, or the answer it gave to this key before. Without a key, just ``run()``.

    The key's row is written in the same transaction as what ``run`` writes: a concurrent retry waits for that
    transaction and then finds its answer, or finds nothing if it was rolled back. Raises :class:`Conflict`
    (``idempotency_key_reused``) when the key came with another request.
    """
    if key is None:
        return run()
    claim = insert(IdempotencyKey).values(tenant_id=tenant_id, key=key, request_sha256=request_sha256)
    claimed = session.execute(claim.on_conflict_do_nothing().returning(IdempotencyKey.key)).one_or_none()
    row = session.get_one(IdempotencyKey, (tenant_id, key))
    if claimed is None:
        if row.request_sha256 != request_sha256:
            raise Conflict(
                "Idempotency-Key: this key came before with another request",
                code="idempotency_key_reused", field="Idempotency-Key", value=key,
            )  # fmt: skip
        assert row.response is not None
        return row.response
    row.response = run()
    session.flush()
    return row.response

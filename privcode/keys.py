"""API keys: ``pc_PREFIX_SECRET``. The prefix finds the row, argon2 of the whole key is stored, it is shown once."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from sqlalchemy import select
from sqlalchemy.orm import Session

from privcode.db.models import ApiKey, Tenant, new_id


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    tenant_id: str
    role: str


def create_admin_key(session: Session) -> str | None:
    """The first admin key of a new installation, or None if there is one already. It can't be shown again."""
    if session.scalars(select(ApiKey.id).limit(1)).one_or_none() is not None:
        return None
    tenant = Tenant(id=new_id("ten"), name="default")
    session.add(tenant)
    session.flush()
    prefix = secrets.token_hex(4)
    key = f"pc_{prefix}_{secrets.token_hex(24)}"
    session.add(
        ApiKey(id=new_id("key"), tenant_id=tenant.id, prefix=prefix, key_hash=PasswordHasher().hash(key), role="admin")
    )
    session.flush()
    return key


class KeyVerifier:
    """Checks keys against the database. A key that was right once is remembered by its SHA-256 (it has 192 random
    bits), so that argon2 is paid once and not at each request."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._verified: dict[str, str] = {}

    def verify(self, session: Session, key: str) -> Caller | None:
        """Who the key belongs to; None if it is no key of ours."""
        parts = key.split("_")
        if len(parts) != 3 or parts[0] != "pc":
            return None
        row = session.scalars(select(ApiKey).where(ApiKey.prefix == parts[1])).one_or_none()
        if row is None:
            return None
        digest = hashlib.sha256(key.encode()).hexdigest()
        if self._verified.get(row.id) != digest:
            try:
                self._hasher.verify(row.key_hash, key)
            except VerifyMismatchError:
                return None
            self._verified[row.id] = digest
        return Caller(tenant_id=row.tenant_id, role=row.role)

"""What an identifier says its value is: ``db_password``, ``getApiKey``, ``customerName``."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from services.trainer.core.masking_spans import PiiKind
from services.trainer.core.masking_values import is_key, is_password, is_person, is_stand_in, is_user_name
from services.trainer.core.masking_words import KEY_QUALIFIERS, KEYS, NO_GETTERS, PEOPLE, SUFFIXES


class Role(Enum):
    PASSWORD = auto()
    SECRET = auto()  # as free in its form as a password
    KEY = auto()
    USER = auto()
    GIVEN_NAME = auto()  # one word is enough
    FULL_NAME = auto()
    PERSON = auto()  # author, owner: a full name, or a user name with a digit


_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_PREPOSITIONS: Final = frozenset({"for", "of", "from", "in", "to", "with", "at", "on"})
_PASSWORD_ENDINGS: Final = ("password", "passwd", "passphrase", "passcode", "pwd")
_PASSWORD_WORDS: Final = frozenset({"pass", "pw", "pswd", "passwords"})
_USER_WORDS: Final = frozenset({"login", "uname", "user", "usr"})


def roles_of(identifier: str) -> tuple[Role, ...]:
    """The roles an identifier names, in order: two for ``get_user_and_password``, none for most."""
    words = [word.lower() for word in _WORDS.findall(identifier)]
    cut = next((place for place, word in enumerate(words) if place and word in _PREPOSITIONS), len(words))
    roles, segment = [], list[str]()
    for word in [*words[:cut], "and"]:
        if word in ("and", "or"):
            roles.append(_role(segment))
            segment = []
        else:
            segment.append(word)
    return tuple(role for role in roles if role is not None)


def roles_of_function(identifier: str) -> tuple[Role, ...]:
    """The roles of what a function of this name returns."""
    words = _WORDS.findall(identifier)
    return () if not words or words[0].lower() in NO_GETTERS else roles_of(identifier)


def roles_of_argument(identifier: str) -> tuple[Role, ...]:
    """The roles of the first argument of a call: ``setPassword(...)``, ``.username(...)``; not ``getPassword(...)``."""
    words = [word.lower() for word in _WORDS.findall(identifier)]
    if words and words[0] in ("set", "with", "use", "check", "verify", "hash"):
        return roles_of(identifier)
    return roles_of(identifier) if len(words) == 1 else ()


def kind_of_value(value: str, role: Role, *, prefix: str = "") -> PiiKind | None:
    """The kind of personal data that ``value`` is in this role; None where it does not look like any."""
    if is_stand_in(value, prefix=prefix):
        return None
    if role in (Role.PASSWORD, Role.SECRET):
        if not is_password(value):
            return None
        return PiiKind.PASSWORD if role is Role.PASSWORD else PiiKind.KEY
    if role is Role.KEY:
        return PiiKind.KEY if is_key(value) else None
    if is_person(value, single=role is Role.GIVEN_NAME):
        return PiiKind.NAME
    if is_user_name(value) and (role is Role.USER or (role is Role.PERSON and any(map(str.isdigit, value)))):
        return PiiKind.USER_NAME
    return None


def _role(words: list[str]) -> Role | None:
    while len(words) > 1 and (words[-1] in SUFFIXES or words[-1].isdigit()):
        words = words[:-1]
    if not words:
        return None
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last.endswith(_PASSWORD_ENDINGS) or last in _PASSWORD_WORDS:
        return Role.PASSWORD
    if last in ("secret", "secrets"):
        return Role.SECRET
    if last in KEYS or (last == "key" and before in KEY_QUALIFIERS):
        return Role.KEY
    if last in _USER_WORDS or last.endswith("username") or (last == "name" and before in ("user", "login", "screen")):
        return Role.USER
    if last in ("firstname", "lastname", "surname", "forename") or (
        last == "name" and before in ("first", "last", "given", "family", "middle")
    ):
        return Role.GIVEN_NAME
    if last in ("fullname", "realname") or (last == "name" and (before in ("full", "real") or before in PEOPLE)):
        return Role.FULL_NAME
    return Role.PERSON if last in PEOPLE else None

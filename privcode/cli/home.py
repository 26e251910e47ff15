"""The home folder of an embedded stack, and where a command finds the service and its key."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from privcode.client import Client
from privcode.errors import Conflict, PrivCodeError


class NoCredentials(PrivCodeError):
    """Neither the environment nor the home folder tells where the service is."""

    code = "no_credentials"


def default_home() -> Path:
    return Path.home() / ".local" / "share" / "privcode"


@contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Hold ``home`` for this process; the lock goes with the process, however it ends.

    Raises :class:`Conflict` (``home_in_use``) if another process holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"home: another privcode process runs on {home}; stop it first, or choose another --home",
                code="home_in_use", field="home", value=str(home),
            ) from None  # fmt: skip
        yield


def connect(home: Path | None, environment: Mapping[str, str]) -> Client:
    """A client for ``home``'s stack if given; else for ``PRIVCODE_URL`` with ``PRIVCODE_API_KEY``; else for the default
    home's stack. Raises :class:`NoCredentials`.
    """
    url, key = environment.get("PRIVCODE_URL"), environment.get("PRIVCODE_API_KEY")
    if home is None and (url or key):
        if not (url and key):
            missing = "PRIVCODE_API_KEY" if url else "PRIVCODE_URL"
            raise NoCredentials(f"{missing} is not set; PRIVCODE_URL and PRIVCODE_API_KEY go together", field=missing)
        return Client(url, key)
    path = (home or default_home()) / "credentials.json"
    try:
        saved = json.loads(path.read_bytes())
        return Client(saved["url"], saved["api_key"])
    except FileNotFoundError:
        raise NoCredentials(
            f"there is no {path}: start the service with `privcode up`, or set PRIVCODE_URL and PRIVCODE_API_KEY"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoCredentials(f"{path} can't be read: {type(error).__name__}") from None

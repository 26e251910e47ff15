"""Exceptions with a stable ``code``. What a code means over HTTP is decided in ``api/errors.py`` alone.

    PrivCodeError
    ├── InvalidInput         the caller sent something wrong; names ``field`` and shows ``value``
    ├── NotFound             no such object
    ├── Conflict             the object is not in a state that allows this
    ├── BudgetExceeded       the dataset's privacy budget does not allow this
    ├── StageFailed          a stage found that it can't do its work; the job fails with this code
    └── SandboxUnavailable   our sandbox could not run; never counted as the program's failure

Messages never contain a private record, a prompt, generated code, a loss or a secret.
"""

from __future__ import annotations

from typing import Any


class PrivCodeError(Exception):
    """Base of all errors that carry a stable code and a message that is safe to show."""

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, field: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.field = field
        self.value = value


class InvalidInput(PrivCodeError):
    code = "invalid_input"


class NotFound(PrivCodeError):
    code = "not_found"


class Conflict(PrivCodeError):
    code = "conflict"


class BudgetExceeded(PrivCodeError):
    code = "budget_exceeded"


class StageFailed(PrivCodeError):
    code = "stage_failed"


class SandboxUnavailable(PrivCodeError):
    code = "sandbox_unavailable"

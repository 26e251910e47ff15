"""Ingestion in a child process: whatever an upload does to a parser, the API stays as it is."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from privcode.errors import InvalidInput
from privcode.ingest.contract import IngestLimits, IngestRequest, IngestSummary
from privcode.ingest.pipeline import ingest
from privcode.process import die_with_parent

_DEFAULT_LIMITS: Final = IngestLimits()
# What an interpreter may need to start at all; nothing else of the environment, which holds credentials.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH")


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Task(_Message):
    upload: Path
    output: Path
    request: IngestRequest
    limits: IngestLimits


class _Refusal(_Message):
    message: str
    code: str
    field: str | None
    value: str | int | None


class _Answer(_Message):
    """Exactly one is set; ``crash`` is the type's name of an exception that is a bug or a limit that was hit."""

    summary: IngestSummary | None = None
    refusal: _Refusal | None = None
    crash: str | None = None


def _limit_this_process(limits: IngestLimits) -> None:
    seconds = math.ceil(limits.time_limit_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.max_output_bytes, limits.max_output_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def run_child(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Main of ``python -m privcode.ingest``: a task as JSON in, an answer as JSON out."""
    die_with_parent()
    task = _Task.model_validate_json(stdin.read())
    _limit_this_process(task.limits)
    try:
        summary = ingest(task.upload, request=task.request, output=task.output, limits=task.limits)
        answer = _Answer(summary=summary)
    except InvalidInput as error:
        refusal = _Refusal(message=error.message, code=error.code, field=error.field, value=error.value)
        answer = _Answer(refusal=refusal)
    except Exception as error:
        # The name alone: the message and the traceback may show what the upload says.
        answer = _Answer(crash=type(error).__name__)
    stdout.write(answer.model_dump_json().encode())
    stdout.flush()


def _crashed(cause: str) -> InvalidInput:
    return InvalidInput(
        f"file: reading it ended the ingest process ({cause})", code="ingest_crashed", field="file", value=cause
    )


def ingest_in_child(
    upload: Path,
    *,
    request: IngestRequest,
    output: Path,
    limits: IngestLimits = _DEFAULT_LIMITS,
    python: str = sys.executable,
) -> IngestSummary:
    """:func:`ingest` in a fresh process with limits on time, memory and file size and without our environment.

    The child dies with the thread that called this. Raises the child's :class:`InvalidInput` unchanged;
    ``ingest_timed_out`` when it was killed after ``time_limit_s``; ``ingest_crashed`` when it ended in any other way.
    After an error there is no ``output``.
    """
    task = _Task(upload=upload.absolute(), output=output.absolute(), request=request, limits=limits)
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        return _run(task, command=[python, "-m", "privcode.ingest"], environment=environment)
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def _run(task: _Task, *, command: list[str], environment: dict[str, str]) -> IngestSummary:
    try:
        child = subprocess.run(
            command,
            input=task.model_dump_json().encode(),
            stdout=subprocess.PIPE,
            # A traceback may show rows.
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=task.limits.time_limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        child = None
    if child is None or child.returncode == -signal.SIGXCPU:
        limit = task.limits.time_limit_s
        raise InvalidInput(
            f"file: reading it took more than {limit:g} s", code="ingest_timed_out", field="file", value=f"{limit:g} s"
        )
    if child.returncode != 0:
        died = child.returncode < 0
        raise _crashed(signal.Signals(-child.returncode).name if died else f"exit status {child.returncode}")
    try:
        answer = _Answer.model_validate_json(child.stdout)
    except ValidationError:
        raise _crashed("no answer") from None
    if answer.refusal is not None:
        refusal = answer.refusal
        raise InvalidInput(refusal.message, code=refusal.code, field=refusal.field, value=refusal.value)
    if answer.summary is None:
        raise _crashed(answer.crash or "no answer")
    return answer.summary

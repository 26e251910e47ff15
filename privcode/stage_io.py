"""The contract between a worker and the child process that does a stage's work.

The worker makes a folder with ``stage.json`` (:class:`StageTask`) and starts ``python -m services.NAME.stage FOLDER``.
The child reads its inputs, writes one folder per output kind below ``outputs/``, and reports on standard output, one
JSON object a line: ``{"progress": {"done": 3, "total": 12}}``. Before it exits with 0 it writes ``result.json``; after
an error of ours ``error.json``. The child has no database, no broker and no credentials, so that
``python -m services.trainer.stage FOLDER`` also works by hand.

Everything in ``result.json``, ``error.json`` and the progress lines is shown to members: nothing that was computed from
private data without differential privacy may be in them. Standard error is a private log.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from privcode.errors import PrivCodeError, StageFailed
from privcode.process import die_with_parent
from privcode.recipes import Label, StageDef, stage_def
from privcode.results import JsonObject, PrivacyPlan
from privcode.rows import read_rows
from privcode.specs import JobSpec

Model = TypeVar("Model", bound=BaseModel)


class StageInput(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    label: Label


class StageEnvironment(BaseModel):
    """Where the child finds what is not an artifact. ``sandbox_socket``: Unix socket of the runner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models_dir: str
    sandbox_socket: str
    threads: int


class StageTask(BaseModel):
    """``stage.json``. ``plan`` is None in a job without a privacy mechanism. ``keep_dir`` outlives an attempt
    (checkpoints, the count of steps taken); it is private. ``reserved_steps``: noised steps that the ledger has
    reserved for all attempts together; None where there is none (other stages, runs by hand). ``history`` tells the
    report what happened so far: the job, its earlier stages, the dataset's budget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    stage: str
    attempt: int
    spec: JobSpec
    plan: PrivacyPlan | None
    inputs: dict[str, StageInput]
    keep_dir: str
    reserved_steps: int | None = None
    environment: StageEnvironment
    history: JsonObject


class Stage:
    """What a stage function gets: its spec and inputs, and where to put its outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.task = StageTask.model_validate_json((folder / "stage.json").read_bytes())
        self.spec = self.task.spec
        self.environment = self.task.environment
        self.keep_dir = Path(self.task.keep_dir)
        self._metrics: JsonObject = {}

    @property
    def definition(self) -> StageDef:
        """What the recipe says of this stage."""
        return stage_def(self.spec, self.task.stage)

    @property
    def plan(self) -> PrivacyPlan:
        """The job's plan; ``LookupError`` in a job without a privacy mechanism, which has no stage that asks for it."""
        if self.task.plan is None:
            raise LookupError(f"recipe {self.spec.recipe} has no privacy plan")
        return self.task.plan

    def has_input(self, kind: str) -> bool:
        return kind in self.task.inputs

    def input(self, kind: str) -> Path:
        """The folder of the input artifact ``kind``; read-only."""
        return Path(self.task.inputs[kind].path)

    def read_rows(self, kind: str) -> Iterator[JsonObject]:
        """The rows of the input's one JSONL file."""
        return read_rows(self.input(kind))

    def read_models(self, kind: str, model: type[Model]) -> list[Model]:
        return [model.model_validate(row) for row in self.read_rows(kind)]

    def read_model(self, kind: str, model: type[Model]) -> Model:
        return model.model_validate_json((self.input(kind) / f"{kind}.json").read_bytes())

    def output(self, kind: str) -> Path:
        """The new folder of the output artifact ``kind``."""
        path = self.folder / "outputs" / kind
        path.mkdir(parents=True, exist_ok=True)
        return path

    def write_rows(self, kind: str, rows: Iterable[BaseModel | Mapping[str, Any]]) -> None:
        with (self.output(kind) / f"{kind}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                data = row.model_dump(mode="json") if isinstance(row, BaseModel) else row
                file.write(json.dumps(data, ensure_ascii=False) + "\n")

    def write_model(self, kind: str, value: BaseModel) -> None:
        (self.output(kind) / f"{kind}.json").write_text(value.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Tell the worker how far this is. ``note`` is shown to members; see the module's last paragraph."""
        _emit({"progress": {"done": done, "total": total, "note": note}})

    def metric(self, name: str, value: float | int | str | None) -> None:
        """A figure for the job's members. Never one computed from private data without DP."""
        self._metrics[name] = value

    def finish(self) -> None:
        _write_atomically(self.folder / "result.json", {"metrics": self._metrics})


StageFunction = Callable[[Stage], None]


def _emit(message: JsonObject) -> None:
    # The protocol's own descriptor, see run_child: a library's print must not end up in it.
    os.write(_PROTOCOL_FD, (json.dumps(message) + "\n").encode())


_PROTOCOL_FD = 1


def _write_atomically(path: Path, data: JsonObject) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def write_error(folder: Path, error: PrivCodeError) -> None:
    """Tell the worker why the stage failed."""
    _write_atomically(folder / "error.json", {"code": error.code, "message": error.message})


def run_child(functions: Mapping[str, StageFunction]) -> None:
    """Main of ``services/NAME/stage.py``: run the stage that the folder asks for and exit.

    Exit status 0 with ``result.json``; 1 with ``error.json`` for our own errors; 2 with ``error.json`` and the code
    ``stage_crashed`` for any other exception, of which only the type's name leaves the private log.
    """
    global _PROTOCOL_FD
    die_with_parent()
    _PROTOCOL_FD = os.dup(1)
    os.dup2(2, 1)
    folder = Path(sys.argv[1])
    stage = Stage(folder)
    try:
        functions[stage.task.stage](stage)
    except PrivCodeError as error:
        write_error(folder, error)
        sys.exit(1)
    except Exception as error:
        crash = StageFailed(
            f"{stage.task.stage} stopped with {type(error).__name__}; the stage's private log tells where",
            code="stage_crashed",
        )
        write_error(folder, crash)
        traceback.print_exc()
        sys.exit(2)
    stage.finish()

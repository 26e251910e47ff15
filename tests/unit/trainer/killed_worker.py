"""Runs a stage again and again and kills it: ``python killed_worker.py FOLDER KILL...``; see ``test_survival.py``.

Each attempt is forked from here, where all is imported already. A KILL is ``FILE`` (when the file of that name appears
or changes in the stage's ``keep``) or a number of milliseconds after the first step; the last attempt is left alone. As
the worker does, each attempt gets the steps that are reserved for it. Prints one JSON object an attempt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from privcode import stage_io
from privcode.errors import StageFailed
from privcode.stage_io import Stage, StageTask
from privcode.workspace import Workspace
from services.trainer import stage as trainer
from services.trainer.core.noise import secret_gaussian


def attempt(folder: Path) -> None:
    drawn = os.open(folder.parent / "drawn", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def noise(like: Tensor, *, std: float) -> Tensor:
        value = secret_gaussian(like, std=std)
        os.write(drawn, b".")  # for the test: noise of one parameter was really drawn
        return value

    trainer.secret_gaussian = noise  # type: ignore[attr-defined]
    stage_io._emit = lambda _: None  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    stage = Stage(folder)
    try:
        trainer.run_sanitize(stage)
    except StageFailed as error:
        print(error.code, error.message, file=sys.stderr)
        os._exit(1)
    stage.finish()
    os._exit(0)


def changed(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def kill(pid: int, keep: Path, when: str) -> None:
    path = keep / ("steps_taken" if when.isdigit() else when)
    before = changed(path)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if changed(path) not in (None, before):
            if when.isdigit():
                time.sleep(int(when) / 1000)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return


def main(folder: Path, kills: list[str]) -> int:
    workspace = Workspace(root=folder.parent)
    given = StageTask.model_validate_json((folder / "stage.json").read_bytes())
    reserved = given.plan.steps
    for when in [*kills, None]:
        taken, checkpointed = workspace.steps_taken(), workspace.checkpointed_steps()
        reserved = max(reserved, taken + given.plan.steps - checkpointed)
        task = given.model_copy(update={"reserved_steps": reserved})
        (folder / "stage.json").write_text(task.model_dump_json())
        pid = os.fork()
        if pid == 0:
            attempt(folder)
        if when is None:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        else:
            kill(pid, workspace.keep, when)
            status = None
        told = {
            "when": when, "checkpointed": checkpointed, "reserved": reserved, "taken": workspace.steps_taken(),
            "status": status, "temporary": (workspace.keep / "checkpoint.tmp").exists(),
        }  # fmt: skip
        print(json.dumps(told), flush=True)
    return status or 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

"""What a Celery worker does with "stage S may have work": lease it, run it in a fresh child process, write the outcome.

The child (``python -m services.NAME.stage FOLDER``, see ``privcode.stage_io``) has no database and no credentials. A
fresh process frees all memory at its end and makes cancelling a kill.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from celery import Celery
from celery.worker import state as celery_state
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from privcode import jobs, ledger
from privcode.artifacts import ArtifactStore
from privcode.db.models import Artifact, Dataset, Job, Stage
from privcode.db.session import SessionFactory, make_sessions, transaction
from privcode.errors import PrivCodeError, StageFailed
from privcode.jobs import Directive, Lease, LeaseLost, NewArtifact
from privcode.queue import RUN_STAGE, Wake, enqueue, make_celery
from privcode.recipes import Label, StageDef
from privcode.results import JsonObject, PrivacyPlan
from privcode.settings import Settings
from privcode.specs import JobSpec
from privcode.stage_io import StageEnvironment, StageInput, StageTask
from privcode.workspace import Workspace

log = logging.getLogger(__name__)

# What a child may know of its surroundings; the database's and the broker's addresses are not in it.
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")


def make_worker(service: str) -> Celery:
    """The Celery app of ``services/NAME/tasks.py``, with its one task; settings come from the environment."""
    settings = Settings()
    app = make_celery(settings.broker_url)
    sessions = make_sessions(settings.database_url)

    @app.task(name=RUN_STAGE)  # type: ignore[untyped-decorator]
    def run_stage(stage_id: str) -> None:
        worker = Worker(
            service=service,
            settings=settings,
            sessions=sessions,
            # Celery sets these to an exit status, which may be 0.
            stopping=lambda: celery_state.should_stop is not None or celery_state.should_terminate is not None,
        )
        if wake := worker.run(stage_id):
            enqueue(app, wake)

    return app


@dataclass(frozen=True)
class _Ended:
    """How the child ended: ``directive`` CANCEL or ``stopping`` if the worker ended it."""

    returncode: int
    cancelled: bool = False
    stopping: bool = False


class Worker:
    """Runs one stage at a time. ``stopping`` tells that the worker process wants to shut down."""

    def __init__(
        self, *, service: str, settings: Settings, sessions: SessionFactory, stopping: Callable[[], bool]
    ) -> None:
        self._service = service
        self._settings = settings
        self._sessions = sessions
        self._stopping = stopping
        self._store = ArtifactStore(settings.artifacts_dir)

    def run(self, stage_id: str) -> Wake | None:
        """Do the stage if it is free, to its end. Returns the stage to wake next."""
        with transaction(self._sessions) as session:
            lease = jobs.lease_stage(session, stage_id, lease_seconds=self._settings.lease_seconds)
        if lease is None:
            return None
        workspace = Workspace.of(self._settings.work_dir, stage_id)
        log.info("stage %s: attempt %d", stage_id, lease.attempt)
        try:
            return self._attempt(lease, workspace)
        except LeaseLost:
            log.warning("stage %s: attempt %d lost its lease, nothing of it was written", stage_id, lease.attempt)
            return None
        except PrivCodeError as error:
            self._fail(lease, workspace, error)
            return None

    def _attempt(self, lease: Lease, workspace: Workspace) -> Wake | None:
        with self._kept(lease), transaction(self._sessions) as session:
            stage = session.get_one(Stage, lease.stage_id)
            definition = jobs.definition_of(stage)
            if lease.attempt > self._settings.max_attempts:
                raise StageFailed(
                    f"{stage.name} was lost {self._settings.max_attempts} times", code="attempts_exhausted"
                )
            reserved = None
            if definition.accounted:
                plan = PrivacyPlan.model_validate(stage.job.plan)
                reserved = ledger.raise_reservation(
                    session,
                    dataset_id=stage.job.dataset_id,
                    job_id=stage.job_id,
                    plan=plan,
                    steps=workspace.steps_taken() + plan.steps - workspace.checkpointed_steps(),
                )
            task = _stage_task(
                session, stage, definition, self._settings, self._store, workspace, lease.attempt, reserved
            )
        folder = workspace.make_attempt(lease.attempt)
        (folder / "stage.json").write_text(task.model_dump_json())
        ended = self._run_child(lease, folder, notes=not _shows_nothing(task, definition))
        if ended.stopping:
            with transaction(self._sessions) as session:
                return jobs.give_back(session, lease)
        if ended.cancelled:
            with transaction(self._sessions) as session:
                jobs.finish_cancel(session, task.job_id, steps_taken=workspace.steps_taken())
            return None
        if ended.returncode != 0:
            raise _child_error(folder, task.stage, ended.returncode, private=_shows_nothing(task, definition))
        return self._finish(lease, workspace, folder, task, definition)

    def _finish(
        self, lease: Lease, workspace: Workspace, folder: Path, task: StageTask, definition: StageDef
    ) -> Wake | None:
        metrics = json.loads((folder / "result.json").read_bytes())["metrics"]
        if _shows_nothing(task, definition):
            metrics = {}
        input_labels = {kind: given.label for kind, given in task.inputs.items()}
        artifacts = []
        for kind in definition.writes:
            output = folder / "outputs" / kind
            if not output.is_dir():
                raise StageFailed(f"{task.stage} did not write {kind}", code="output_missing")
            with self._kept(lease):
                stored = self._store.put(output)
            artifacts.append(NewArtifact(kind=kind, label=definition.label(kind, input_labels), stored=stored))
        with transaction(self._sessions) as session:
            wake = jobs.finish_stage(
                session,
                lease,
                artifacts=artifacts,
                inputs={kind: Path(given.path).name for kind, given in task.inputs.items()},
                metrics=metrics,
                steps_taken=workspace.steps_taken() if definition.accounted else None,
            )
        workspace.remove()
        return wake

    def _fail(self, lease: Lease, workspace: Workspace, error: PrivCodeError) -> None:
        log.error("stage %s failed: %s", lease.stage_id, error.code)
        try:
            with transaction(self._sessions) as session:
                stage = session.get_one(Stage, lease.stage_id)
                accounted = jobs.definition_of(stage).accounted
                jobs.fail_stage(
                    session,
                    lease,
                    code=error.code,
                    message=error.message,
                    steps_taken=workspace.steps_taken() if accounted else None,
                )
        except LeaseLost:
            log.warning("stage %s: lost its lease before its failure was written", lease.stage_id)

    def _run_child(self, lease: Lease, folder: Path, *, notes: bool) -> _Ended:
        """Start the child and stay with it: heartbeat, progress (with its notes or without), cancel, shutdown. It never
        outlives this call."""
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {
            "OMP_NUM_THREADS": str(self._settings.threads),
            # Threads that spin while they wait lose a time slice at every step when anything else wants a core.
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        with (folder / "log.txt").open("wb") as log_file:
            child = subprocess.Popen(
                [sys.executable, "-m", f"services.{self._service}.stage", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=environment,
                start_new_session=True,
            )
        try:
            return self._follow(lease, child, notes=notes)
        finally:
            _kill(child)

    def _follow(self, lease: Lease, child: subprocess.Popen[bytes], *, notes: bool) -> _Ended:
        assert child.stdout is not None
        lines = _Lines(child.stdout.fileno())
        progress: JsonObject | None = None
        next_beat = time.monotonic() + self._settings.heartbeat_seconds
        while True:
            messages = lines.read(timeout=max(0.0, next_beat - time.monotonic()))
            for message in messages:
                if "progress" in message:
                    progress = message["progress"] if notes else {**message["progress"], "note": ""}
            if lines.closed:
                if progress is not None:
                    self._beat(lease, progress)
                return _Ended(returncode=child.wait())
            if time.monotonic() >= next_beat:
                if self._beat(lease, progress) is Directive.CANCEL:
                    return _Ended(returncode=-1, cancelled=True)
                progress = None
                next_beat = time.monotonic() + self._settings.heartbeat_seconds
            if self._stopping():
                return _Ended(returncode=-1, stopping=True)

    @contextlib.contextmanager
    def _kept(self, lease: Lease) -> Iterator[None]:
        """Prolong the lease while this thread hashes files: a large model on a slow volume takes longer than a lease.

        A lease that is lost meanwhile shows at the next write.
        """
        done = threading.Event()

        def keep() -> None:
            while not done.wait(self._settings.heartbeat_seconds):
                with contextlib.suppress(LeaseLost, SQLAlchemyError):
                    self._beat(lease, None)

        thread = threading.Thread(target=keep, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _beat(self, lease: Lease, progress: JsonObject | None) -> Directive:
        with transaction(self._sessions) as session:
            return jobs.heartbeat(session, lease, lease_seconds=self._settings.lease_seconds, progress=progress)


class _Lines:
    """JSON objects, one a line, from a pipe, without ever blocking longer than asked."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self.closed = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(descriptor, selectors.EVENT_READ)

    def read(self, *, timeout: float) -> list[JsonObject]:
        if not self._selector.select(timeout):
            return []
        data = os.read(self._descriptor, 65536)
        self.closed = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line]


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout:
        child.stdout.close()


def _shows_nothing(task: StageTask, definition: StageDef) -> bool:
    """Whether what the stage finds is private: then members see that it runs and how far, and no figure of it."""
    inputs = {kind: given.label for kind, given in task.inputs.items()}
    return definition.result_label(inputs) is Label.PRIVATE


def _child_error(folder: Path, stage: str, returncode: int, *, private: bool) -> PrivCodeError:
    try:
        error = json.loads((folder / "error.json").read_bytes())
        message = f"{stage} failed; its results are private, and so is its message" if private else error["message"]
        return StageFailed(message, code=error["code"])
    except FileNotFoundError:
        if returncode == -signal.SIGKILL:
            return StageFailed(f"{stage} was killed; out of memory is the usual cause", code="stage_killed")
        how = f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
        return StageFailed(
            f"{stage} ended with {how} before it could say why; its private log may", code="stage_killed"
        )


def _stage_task(
    session: Session,
    stage: Stage,
    definition: StageDef,
    settings: Settings,
    store: ArtifactStore,
    workspace: Workspace,
    attempt: int,
    reserved_steps: int | None,
) -> StageTask:
    job = stage.job
    spec = jobs.spec_of(job)
    made = session.scalars(select(Artifact).where(Artifact.job_id == job.id))
    available = {artifact.kind: artifact for artifact in made}
    available["dataset"] = job.dataset.artifact
    if job.prompts is not None:
        available["prompts"] = job.prompts.artifact
    if spec.warm_up is not None:
        available["warm_up_pairs"] = session.get_one(Dataset, spec.warm_up.dataset).artifact
    if spec.rows_of_job is not None and (kept := jobs.kept_pairs(session, spec.rows_of_job)):
        available["kept_pairs"] = kept
    return StageTask(
        job_id=job.id,
        stage=stage.name,
        attempt=attempt,
        spec=spec,
        plan=None if job.plan is None else PrivacyPlan.model_validate(job.plan),
        inputs={
            kind: StageInput(path=str(store.verify(available[kind].sha256)), label=Label(available[kind].label))
            for kind in definition.reads
        },
        keep_dir=str(workspace.keep),
        reserved_steps=reserved_steps,
        environment=StageEnvironment(
            models_dir=str(settings.models_dir), sandbox_socket=str(settings.sandbox_socket), threads=settings.threads
        ),
        history=_history(session, job, spec),
    )


def _history(session: Session, job: Job, spec: JobSpec) -> JsonObject:
    """What the report tells of the job besides its artifacts; all of it is known to members."""
    left = ledger.budget(session, dataset=job.dataset)
    warm_up = None if spec.warm_up is None else session.get_one(Dataset, spec.warm_up.dataset)
    return {
        "job": {
            "id": job.id,
            "created_at": int(job.created_at.timestamp()),
            "recipe": job.recipe,
            "preset": job.preset,
        },
        "dataset": {"id": job.dataset.id, "name": job.dataset.name, "records": job.dataset.rows},
        "prompts": None if job.prompts is None else {"id": job.prompts.id, "name": job.prompts.name},
        "warm_up": None if warm_up is None else {"id": warm_up.id, "name": warm_up.name},
        "stages": [
            {
                "name": stage.name,
                "seconds": (stage.ended_at - stage.started_at).total_seconds(),
                "metrics": stage.metrics or {},
            }
            for stage in job.stages
            if stage.ended_at and stage.started_at
        ],
        "budget": {
            "epsilon": left.epsilon,
            "delta": left.delta,
            "epsilon_spent": left.epsilon_spent,
            "epsilon_left": left.epsilon_left,
        },
    }

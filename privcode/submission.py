"""From a request to a job: everything that can be wrong is found here, before anything is stored, queued or spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from privcode import datasets, events, jobs, ledger
from privcode.accounting import epsilon_rdp, make_plan, signal_to_noise
from privcode.artifacts import ArtifactStore
from privcode.canaries import planted_count
from privcode.db.models import Dataset, Job, Stage, new_id
from privcode.errors import InvalidInput
from privcode.ledger import Budget
from privcode.models import ModelShape, model_info
from privcode.presets import resolve
from privcode.queue import Wake
from privcode.recipes import Label, labels_of, stages_of
from privcode.results import PrivacyPlan
from privcode.rows import read_rows, rows_of_kept_pairs
from privcode.specs import BoostSpec, JobSpec
from privcode.states import JobState, StageState


@dataclass(frozen=True)
class Estimate:
    """What a job would spend. ``signal_to_noise`` = expected_batch / (noise_multiplier * sqrt(trainable
    parameters)): the largest possible norm of the clipped sum against the norm of the noise. A recipe without a privacy
    mechanism has no plan, no ``epsilon_rdp`` and no ``signal_to_noise``."""

    spec: JobSpec
    plan: PrivacyPlan | None
    dataset: Dataset
    prompts: Dataset | None
    epsilon_rdp: float | None
    trainable_parameters: int
    signal_to_noise: float | None
    warnings: list[str]


def check(
    session: Session, *, tenant_id: str, request: Mapping[str, Any], models_dir: Path, store: ArtifactStore
) -> Estimate:
    """Validate a request and calibrate its plan; writes nothing. ``store`` is read for ``rows_of_job`` alone.

    Raises :class:`InvalidInput`, :class:`NotFound` or pydantic's ``ValidationError``.
    """
    spec = resolve(request)
    dataset = datasets.get(session, spec.dataset, tenant_id=tenant_id, field="dataset")
    prompts = None
    if spec.prompts is not None:
        prompts = datasets.get(session, spec.prompts, tenant_id=tenant_id, field="prompts")
    _require_roles(dataset, prompts)
    if spec.warm_up is not None:
        _require_warm_up(datasets.get(session, spec.warm_up.dataset, tenant_id=tenant_id, field="warm_up.dataset"))
    shapes = _require_models(spec, models_dir)
    trainable = _trainable(spec, shapes)
    records, units = dataset.rows, dataset.units
    if spec.rows_of_job is not None:
        records, units = _matching_rows(session, spec.rows_of_job, dataset, store)
    made_private = labels_of(stages_of(spec))["premium_model"] is Label.PRIVATE
    warnings = [f"recipe {spec.recipe}: its models, scores and report stay private"] if made_private else []
    if spec.privacy is None:
        return Estimate(
            spec=spec,
            plan=None,
            dataset=dataset,
            prompts=prompts,
            epsilon_rdp=None,
            trainable_parameters=trainable,
            signal_to_noise=None,
            warnings=[f"recipe {spec.recipe}: NO privacy guarantee, and no budget is charged", *warnings],
        )
    planted = planted_count(spec.audit.canary_rate)
    plan = make_plan(spec.privacy, records=records + planted, units=None if units is None else units + planted)
    ratio = signal_to_noise(
        expected_batch=plan.expected_batch, noise_multiplier=plan.noise_multiplier, trainable_parameters=trainable
    )
    return Estimate(
        spec=spec,
        plan=plan,
        dataset=dataset,
        prompts=prompts,
        epsilon_rdp=epsilon_rdp([plan.mechanism], target_delta=plan.target_delta),
        trainable_parameters=trainable,
        signal_to_noise=ratio,
        warnings=[*warnings, *_warnings(plan, ratio)],
    )


def _require_roles(dataset: Dataset, prompts: Dataset | None) -> None:
    if prompts is not None and prompts.visibility != "public":
        raise InvalidInput(
            f"prompts: {prompts.id} is private; synthesis would leak it. Prompts must be public",
            code="prompts_private", field="prompts", value=prompts.id,
        )  # fmt: skip
    if dataset.visibility != "private":
        raise InvalidInput(
            f"dataset: {dataset.id} is public; there is nothing to protect",
            code="dataset_public", field="dataset", value=dataset.id,
        )  # fmt: skip
    _require_pairs(dataset, field="dataset")


def _require_warm_up(dataset: Dataset) -> None:
    if dataset.visibility != "public":
        raise InvalidInput(
            f"warm_up.dataset: {dataset.id} is private; the warm-up trains without privacy. Its data must be public",
            code="warm_up_private", field="warm_up.dataset", value=dataset.id,
        )  # fmt: skip
    _require_pairs(dataset, field="warm_up.dataset")


def _require_pairs(dataset: Dataset, *, field: str) -> None:
    if dataset.kind != "pairs":
        raise InvalidInput(
            f"{field}: {dataset.id} holds {dataset.kind}; training needs pairs",
            code="wrong_dataset_kind", field=field, value=dataset.id,
        )  # fmt: skip


def _require_models(spec: JobSpec, models_dir: Path) -> dict[str, ModelShape | None]:
    """Spec field -> shape, of each model of the job; refuses one that is unknown or of the wrong kind."""
    shapes = {}
    for field, reference in spec.models.items():
        info = model_info(reference, models_dir=models_dir, field=field)
        wanted = "encoder" if field == "round_trip.scorer" else "causal"
        if info.kind != wanted:
            raise InvalidInput(
                f"{field}: {reference!r} is not a model of kind {wanted}",
                code="wrong_model_kind", field=field, value=reference,
            )  # fmt: skip
        shapes[field] = info.shape
    return shapes


def _trainable(spec: JobSpec, shapes: Mapping[str, ModelShape | None]) -> int:
    """Trainable parameters of the training that sees private data last: sanitize's, or of the one without privacy."""
    trained = spec.sanitize or spec.section(BoostSpec)
    field = "sanitize.model" if spec.sanitize is not None else "boost.model"
    shape = shapes[field]
    if shape is None:
        raise InvalidInput(
            f"{field}: the shape of {trained.model!r} is unknown",
            code="unknown_model", field=field, value=trained.model,
        )  # fmt: skip
    return shape.lora_parameters(trained.lora)


def _matching_rows(session: Session, job_id: str, dataset: Dataset, store: ArtifactStore) -> tuple[int, int | None]:
    """How many rows of ``dataset`` the job's filters let through, and how many units they are where it has a
    ``unit_id``; see :func:`privcode.rows.rows_of_kept_pairs`."""
    job = jobs.get(session, job_id, tenant_id=dataset.tenant_id, field="rows_of_job")
    if job.state != JobState.SUCCEEDED:
        raise InvalidInput(
            f"rows_of_job: {job_id} has not succeeded, it is {job.state}",
            code="job_not_succeeded", field="rows_of_job", value=job_id,
        )  # fmt: skip
    kept = jobs.kept_pairs(session, job_id)
    if kept is None:
        raise InvalidInput(
            f"rows_of_job: {job_id} is of recipe {job.recipe}, which has no filters that keep pairs",
            code="no_kept_pairs", field="rows_of_job", value=job_id,
        )  # fmt: skip
    rows, pairs = (read_rows(store.verify(sha256)) for sha256 in (dataset.artifact.sha256, kept.sha256))
    matching = rows_of_kept_pairs(rows, pairs)
    if not matching:
        raise InvalidInput(
            f"rows_of_job: no row of {dataset.id} has the problem of a pair that {job_id} kept",
            code="no_matching_rows", field="rows_of_job", value=job_id,
        )  # fmt: skip
    units = None if dataset.units is None else len({row["unit_id"] for row in matching})
    return len(matching), units


def _warnings(plan: PrivacyPlan, ratio: float) -> list[str]:
    warnings = []
    if plan.target_delta >= 1 / plan.units:
        name = "records" if plan.unit == "record" else "units"
        warnings.append(
            f"privacy.target_delta: {plan.target_delta} is not below 1/n = {1 / plan.units:.3g}: the guarantee "
            f"allows that one of the {plan.units} {name} is published outright"
        )
    if ratio < 1:
        warnings.append(
            f"the noise outweighs the signal (ratio {ratio:.2g}): expect the adapter to learn little. More steps or a "
            "larger expected_batch on more data, a smaller adapter or a larger target_epsilon raise the ratio"
        )
    return warnings


def budget_after(session: Session, estimate: Estimate) -> Budget:
    """The dataset's budget if this job were submitted now. Raises :class:`BudgetExceeded` if it would be refused."""
    if estimate.plan is None:
        return ledger.budget(session, dataset=estimate.dataset)
    return ledger.require_fits(session, dataset=estimate.dataset, plan=estimate.plan)


def submit(
    session: Session, *, tenant_id: str, request: Mapping[str, Any], models_dir: Path, store: ArtifactStore
) -> tuple[Job, Wake]:
    """Write the job and its stages and reserve its budget; the caller commits, then sends the wake.

    Raises what :func:`check` raises, and :class:`BudgetExceeded`.
    """
    estimate = check(session, tenant_id=tenant_id, request=request, models_dir=models_dir, store=store)
    spec = estimate.spec
    preset = request.get("preset")
    job = Job(
        id=new_id("job"),
        tenant_id=tenant_id,
        recipe=spec.recipe,
        preset=preset if isinstance(preset, str) else None,
        spec=spec.model_dump(mode="json"),
        plan=None if estimate.plan is None else estimate.plan.model_dump(mode="json"),
        dataset_id=estimate.dataset.id,
        prompts_id=None if estimate.prompts is None else estimate.prompts.id,
        state=JobState.QUEUED,
        warnings=estimate.warnings,
    )
    session.add(job)
    session.flush()
    stages = [
        Stage(
            id=new_id("stg"),
            job_id=job.id,
            position=position,
            name=stage.name,
            queue=stage.queue,
            state=StageState.PENDING if position else StageState.QUEUED,
            woken_at=None if position else func.clock_timestamp(),
        )
        for position, stage in enumerate(stages_of(spec))
    ]
    session.add_all(stages)
    session.flush()
    if estimate.plan is not None:
        ledger.reserve(session, dataset_id=estimate.dataset.id, job_id=job.id, plan=estimate.plan)
    events.emit(session, job.id, "job.queued", {"recipe": spec.recipe})
    return job, Wake(stage_id=stages[0].id, queue=stages[0].queue)

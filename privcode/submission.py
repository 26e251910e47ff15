"""From a request to a job: everything that can be wrong is found here, before anything is stored, queued or spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from privcode import datasets, events, ledger
from privcode.accounting import epsilon_rdp, make_plan, signal_to_noise
from privcode.canaries import planted_count
from privcode.db.models import Dataset, Job, Stage, new_id
from privcode.errors import InvalidInput
from privcode.ledger import Budget
from privcode.models import model_info
from privcode.presets import resolve
from privcode.queue import Wake
from privcode.recipes import RECIPES
from privcode.results import PrivacyPlan
from privcode.specs import JobSpec
from privcode.states import JobState, StageState


@dataclass(frozen=True)
class Estimate:
    """What a job would spend. ``signal_to_noise`` = expected_batch / (noise_multiplier * sqrt(trainable
    parameters)): the largest possible norm of the clipped sum against the norm of the noise."""

    spec: JobSpec
    plan: PrivacyPlan
    dataset: Dataset
    prompts: Dataset
    epsilon_rdp: float
    trainable_parameters: int
    signal_to_noise: float
    warnings: list[str]


def check(session: Session, *, tenant_id: str, request: Mapping[str, Any], models_dir: Path) -> Estimate:
    """Validate a request and calibrate its plan; writes nothing.

    Raises :class:`InvalidInput`, :class:`NotFound` or pydantic's ``ValidationError``.
    """
    spec = resolve(request)
    dataset = datasets.get(session, spec.dataset, tenant_id=tenant_id, field="dataset")
    prompts = datasets.get(session, spec.prompts, tenant_id=tenant_id, field="prompts")
    _require_roles(dataset, prompts)
    shape = None
    for field, reference in spec.models.items():
        info = model_info(reference, models_dir=models_dir, field=field)
        wanted = "encoder" if field == "round_trip.scorer" else "causal"
        if info.kind != wanted:
            raise InvalidInput(
                f"{field}: {reference!r} is not a model of kind {wanted}",
                code="wrong_model_kind", field=field, value=reference,
            )  # fmt: skip
        if field == "sanitize.model":
            shape = info.shape
    if shape is None:
        raise InvalidInput(
            f"sanitize.model: the shape of {spec.sanitize.model!r} is unknown",
            code="unknown_model", field="sanitize.model", value=spec.sanitize.model,
        )  # fmt: skip
    planted = planted_count(spec.audit.canary_rate)
    plan = make_plan(
        spec.privacy,
        records=dataset.rows + planted,
        units=None if dataset.units is None else dataset.units + planted,
    )
    trainable = shape.lora_parameters(spec.sanitize.lora)
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
        warnings=_warnings(plan, ratio),
    )


def _require_roles(dataset: Dataset, prompts: Dataset) -> None:
    if prompts.visibility != "public":
        raise InvalidInput(
            f"prompts: {prompts.id} is private; synthesis would leak it. Prompts must be public",
            code="prompts_private", field="prompts", value=prompts.id,
        )  # fmt: skip
    if dataset.visibility != "private":
        raise InvalidInput(
            f"dataset: {dataset.id} is public; there is nothing to protect",
            code="dataset_public", field="dataset", value=dataset.id,
        )  # fmt: skip
    if dataset.kind != "pairs":
        raise InvalidInput(
            f"dataset: {dataset.id} holds {dataset.kind}; training needs pairs",
            code="wrong_dataset_kind", field="dataset", value=dataset.id,
        )  # fmt: skip


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
    return ledger.require_fits(session, dataset=estimate.dataset, plan=estimate.plan)


def submit(
    session: Session, *, tenant_id: str, request: Mapping[str, Any], models_dir: Path
) -> tuple[Job, Wake]:  # fmt: skip
    """Write the job and its stages and reserve its budget; the caller commits, then sends the wake.

    Raises what :func:`check` raises, and :class:`BudgetExceeded`.
    """
    estimate = check(session, tenant_id=tenant_id, request=request, models_dir=models_dir)
    spec = estimate.spec
    preset = request.get("preset")
    job = Job(
        id=new_id("job"),
        tenant_id=tenant_id,
        recipe=spec.recipe,
        preset=preset if isinstance(preset, str) else None,
        spec=spec.model_dump(mode="json"),
        plan=estimate.plan.model_dump(mode="json"),
        dataset_id=estimate.dataset.id,
        prompts_id=estimate.prompts.id,
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
        for position, stage in enumerate(RECIPES[spec.recipe])
    ]
    session.add_all(stages)
    session.flush()
    ledger.reserve(session, dataset_id=estimate.dataset.id, job_id=job.id, plan=estimate.plan)
    events.emit(session, job.id, "job.queued", {"recipe": spec.recipe})
    return job, Wake(stage_id=stages[0].id, queue=stages[0].queue)

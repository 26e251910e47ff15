"""Datasets: rows (problem, solution, lang, perhaps unit_id) in an artifact, and for private ones a privacy budget."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from privcode.artifacts import ArtifactStore
from privcode.db.models import Artifact, Dataset, new_id
from privcode.errors import Conflict, NotFound
from privcode.ingest import IngestSummary
from privcode.recipes import Label


def create(
    session: Session,
    *,
    tenant_id: str,
    name: str,
    visibility: str,
    kind: str,
    summary: IngestSummary,
    folder: Path,
    store: ArtifactStore,
    budget_epsilon: float,
    budget_delta: float,
) -> Dataset:
    """Put the ingested ``folder`` into the store and write the rows.

    The same private content twice would have two budgets, so it is refused: :class:`Conflict` (``dataset_exists``).
    """
    same = select(Dataset.id).where(
        Dataset.tenant_id == tenant_id,
        Dataset.sha256 == summary.sha256,
        Dataset.visibility == visibility,
        Dataset.kind == kind,
    )
    if existing := session.scalars(same).one_or_none():
        raise Conflict(
            f"file: the same {visibility} rows are already here as {existing}",
            code="dataset_exists", field="file", value=existing,
        )  # fmt: skip
    stored = store.put(folder)
    private = visibility == "private"
    dataset = Dataset(
        id=new_id("ds"),
        tenant_id=tenant_id,
        name=name,
        visibility=visibility,
        kind=kind,
        rows=summary.rows,
        units=summary.units,
        sha256=summary.sha256,
        summary=summary.model_dump(mode="json"),
        budget_epsilon=budget_epsilon if private else None,
        budget_delta=budget_delta if private else None,
    )
    session.add(dataset)
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict(
            "file: the same rows are being uploaded by another request", code="dataset_exists", field="file"
        ) from error
    session.add(
        Artifact(
            id=new_id("art"),
            tenant_id=tenant_id,
            kind="dataset",
            label=Label.PRIVATE if private else Label.PUBLIC,
            sha256=stored.sha256,
            bytes=stored.bytes,
            files=list(stored.files),
            inputs={},
            dataset_id=dataset.id,
        )
    )
    session.flush()
    return dataset


def get(session: Session, dataset_id: str, *, tenant_id: str, field: str = "dataset") -> Dataset:
    """Raises :class:`NotFound` (``dataset_not_found``), the same for another tenant's dataset."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None or dataset.tenant_id != tenant_id:
        raise NotFound(
            f"{field}: there is no dataset {dataset_id!r}", code="dataset_not_found", field=field, value=dataset_id
        )
    return dataset


def listing(session: Session, *, tenant_id: str, after: str | None, limit: int) -> list[Dataset]:
    """Newest first, at most ``limit``, those older than ``after``."""
    query = select(Dataset).where(Dataset.tenant_id == tenant_id)
    if after is not None:
        last = get(session, after, tenant_id=tenant_id, field="after")
        query = query.where(tuple_(Dataset.created_at, Dataset.id) < tuple_(last.created_at, last.id))
    return list(session.scalars(query.order_by(Dataset.created_at.desc(), Dataset.id.desc()).limit(limit)))

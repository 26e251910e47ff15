"""Datasets: upload, list, budget."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.auth import UseCaller
from api.context import Context, UseContext
from api.idempotency import UseIdempotencyKey, once
from api.schemas import (
    BudgetHistoryObject,
    BudgetObject,
    DatasetObject,
    LedgerEntryObject,
    ListObject,
    UploadQuery,
    UsePage,
    page_of,
)
from privcode import datasets, ledger
from privcode.db.models import Dataset
from privcode.db.session import transaction
from privcode.errors import InvalidInput
from privcode.ingest import IngestRequest, ingest_in_child
from privcode.keys import Caller
from privcode.results import JsonObject

router = APIRouter(tags=["datasets"])


_FILE_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/datasets", status_code=201, openapi_extra=_FILE_BODY)
async def create_dataset(
    request: Request,
    query: Annotated[UploadQuery, Query()],
    context: UseContext,
    caller: UseCaller,
    idempotency_key: UseIdempotencyKey = None,
) -> DatasetObject:
    """Upload rows as JSON lines (``problem``, ``solution``, ``lang``, and for pairs ``unit_id``), or a source archive
    (.tar.gz) that is mined into pairs. The body is the file itself. Nothing is stored unless every row is right."""
    folder = await run_in_threadpool(context.store.staging)
    upload = folder / "upload"
    try:
        sha256 = await _receive(request, upload, limit=context.settings.max_upload_bytes)
        return await run_in_threadpool(_create, context, caller, query, upload, sha256, idempotency_key)
    finally:
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


async def _receive(request: Request, path: Path, *, limit: int) -> str:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise InvalidInput(
                    f"file: larger than the limit of {limit} bytes", code="upload_too_large", field="file", value=size
                )
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _create(
    context: Context, caller: Caller, query: UploadQuery, upload: Path, sha256: str, idempotency_key: str | None
) -> DatasetObject:
    content = upload.parent / "content"
    content.mkdir()
    request_sha256 = hashlib.sha256(f"{query.model_dump_json()}\n{sha256}".encode()).hexdigest()

    def run() -> JsonObject:
        options = query.model_dump(
            include={
                "format", "kind", "visibility", "min_solution_chars", "max_solution_chars", "max_problem_chars", "unit",
            },
            exclude_none=True,
        )  # fmt: skip
        summary = ingest_in_child(
            upload, request=IngestRequest.model_validate(options), output=content / "dataset.jsonl"
        )
        dataset = datasets.create(
            session,
            tenant_id=caller.tenant_id,
            name=query.name,
            visibility=query.visibility,
            kind=query.kind,
            summary=summary,
            folder=content,
            store=context.store,
            budget_epsilon=query.budget_epsilon or context.settings.default_budget_epsilon,
            budget_delta=query.budget_delta or context.settings.default_budget_delta,
        )
        session.refresh(dataset)
        return _object(session, dataset).model_dump(mode="json")

    with transaction(context.sessions) as session:
        answer = once(session, tenant_id=caller.tenant_id, key=idempotency_key, request_sha256=request_sha256, run=run)
    return DatasetObject.model_validate(answer)


def _object(session: Session, dataset: Dataset) -> DatasetObject:
    private = dataset.visibility == "private"
    return DatasetObject.of(dataset, ledger.budget(session, dataset=dataset) if private else None)


@router.get("/datasets")
def list_datasets(page: UsePage, context: UseContext, caller: UseCaller) -> ListObject[DatasetObject]:
    """Newest first."""
    with transaction(context.sessions) as session:
        rows = datasets.listing(session, tenant_id=caller.tenant_id, after=page.after, limit=page.limit + 1)
        return page_of(rows, limit=page.limit, items=[_object(session, row) for row in rows])


@router.get("/datasets/{dataset_id}")
def get_dataset(dataset_id: str, context: UseContext, caller: UseCaller) -> DatasetObject:
    with transaction(context.sessions) as session:
        return _object(session, datasets.get(session, dataset_id, tenant_id=caller.tenant_id))


@router.get("/datasets/{dataset_id}/budget")
def get_budget(dataset_id: str, context: UseContext, caller: UseCaller) -> BudgetHistoryObject:
    """What may be spent, what is, and each mechanism that counts. Released entries cost nothing."""
    with transaction(context.sessions) as session:
        dataset = datasets.get(session, dataset_id, tenant_id=caller.tenant_id)
        budget = BudgetObject.of(ledger.budget(session, dataset=dataset))
        entries = [LedgerEntryObject.of(entry) for entry in ledger.entries(session, dataset_id=dataset.id)]
        return BudgetHistoryObject(dataset=dataset.id, entries=entries, **budget.model_dump())

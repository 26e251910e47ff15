"""The runner's HTTP interface: programs in, results out, as they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError

from privcode.sandbox import Execution, ExecutionBatch, ExecutionResult, LanguageStatus, Sandbox
from privcode.specs import ExecutionLimits

_MAX_BODY_BYTES: Final = 64 * 1024 * 1024


class Run(Protocol):
    """:meth:`Sandbox.run`."""

    def __call__(self, execution: Execution, *, limits: ExecutionLimits) -> ExecutionResult: ...


# What runs the programs of one request, which end with the block.
Batch = Callable[[], AbstractContextManager[Run]]


def make_app(
    *,
    sandbox: Sandbox,
    batch: Batch,
    pool: ThreadPoolExecutor,
    health: dict[str, str | int | bool],
) -> FastAPI:
    """``sandbox`` tells the languages, ``batch`` runs programs. ``pool`` bounds how many run at once, over all
    requests. ``health``: what /healthz answers."""
    app = FastAPI(title="PrivCode sandbox runner", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str | int | bool]:
        return health

    @app.get("/v1/languages")
    async def languages() -> list[LanguageStatus]:
        return await asyncio.get_running_loop().run_in_executor(pool, sandbox.languages)

    @app.post("/v1/executions")
    async def execute(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_BODY_BYTES:
                return _refusal(413, "body_too_large", f"the body may have {_MAX_BODY_BYTES} bytes")
        try:
            asked = ExecutionBatch.model_validate_json(bytes(body))
        except ValidationError as error:
            # Neither values nor messages, which quote them: a program would end up in the caller's log.
            problems = [
                f"{'.'.join(str(part) for part in problem['loc'][:2])}: {problem['type']}"
                for problem in error.errors(include_input=False, include_url=False, include_context=False)
            ]
            return _refusal(422, "invalid_batch", "; ".join(problems[:5]))
        if len({execution.id for execution in asked.executions}) != len(asked.executions):
            return _refusal(422, "invalid_batch", "executions: an id is there twice")
        return StreamingResponse(_results(asked, batch=batch(), pool=pool), media_type="application/x-ndjson")

    return app


async def _results(
    asked: ExecutionBatch, *, batch: AbstractContextManager[Run], pool: ThreadPoolExecutor
) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    with batch as run:
        futures = [
            loop.run_in_executor(pool, partial(run, execution, limits=asked.limits)) for execution in asked.executions
        ]
        try:
            for future in asyncio.as_completed(futures):
                yield (await future).model_dump_json() + "\n"
        finally:
            # The caller is gone: what has not begun never does, what has begun ends by its limits.
            for waiting in futures:
                waiting.cancel()


def _refusal(status: int, code: str, detail: str) -> JSONResponse:
    return JSONResponse({"code": code, "detail": detail}, status_code=status)

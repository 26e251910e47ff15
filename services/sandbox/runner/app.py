"""The runner's HTTP interface: programs in, results out, as they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError

from privcode.sandbox import ExecutionBatch, LanguageStatus, Sandbox

_MAX_BODY_BYTES: Final = 64 * 1024 * 1024


def make_app(*, sandbox: Sandbox, pool: ThreadPoolExecutor, health: dict[str, str | int | bool]) -> FastAPI:
    """``pool`` bounds how many executions run at once, over all requests. ``health``: what /healthz answers."""
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
            batch = ExecutionBatch.model_validate_json(bytes(body))
        except ValidationError as error:
            # Neither values nor messages, which quote them: a program would end up in the caller's log.
            problems = [
                f"{'.'.join(str(part) for part in problem['loc'][:2])}: {problem['type']}"
                for problem in error.errors(include_input=False, include_url=False, include_context=False)
            ]
            return _refusal(422, "invalid_batch", "; ".join(problems[:5]))
        if len({execution.id for execution in batch.executions}) != len(batch.executions):
            return _refusal(422, "invalid_batch", "executions: an id is there twice")
        return StreamingResponse(_results(batch, sandbox=sandbox, pool=pool), media_type="application/x-ndjson")

    return app


async def _results(batch: ExecutionBatch, *, sandbox: Sandbox, pool: ThreadPoolExecutor) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    run = partial(sandbox.run, limits=batch.limits)
    futures = [loop.run_in_executor(pool, run, execution) for execution in batch.executions]
    try:
        for future in asyncio.as_completed(futures):
            yield (await future).model_dump_json() + "\n"
    finally:
        # The caller is gone: what has not begun never does, what has begun ends by its limits.
        for waiting in futures:
            waiting.cancel()


def _refusal(status: int, code: str, detail: str) -> JSONResponse:
    return JSONResponse({"code": code, "detail": detail}, status_code=status)

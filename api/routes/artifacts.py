"""Downloads, decided by label and role."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response, StreamingResponse

from api.auth import UseCaller, require_may_read
from api.context import UseContext
from privcode.db.models import Artifact
from privcode.db.session import transaction
from privcode.errors import NotFound

router = APIRouter(tags=["artifacts"])

_CHUNK: Final = 1 << 20


@router.get("/artifacts/{artifact_id}/content", response_class=Response)
def get_content(artifact_id: str, context: UseContext, caller: UseCaller) -> Response:
    """The artifact's file, or a tar of its files. ``private`` artifacts leave only to a privacy officer."""
    with transaction(context.sessions) as session:
        artifact = session.get(Artifact, artifact_id)
        if artifact is None or artifact.tenant_id != caller.tenant_id:
            raise NotFound(
                f"artifact: there is no artifact {artifact_id!r}",
                code="artifact_not_found", field="artifact", value=artifact_id,
            )  # fmt: skip
    require_may_read(artifact, caller, field="artifact", value=artifact_id)
    folder = context.store.verify(artifact.sha256)
    if len(artifact.files) == 1:
        return FileResponse(folder / artifact.files[0], filename=Path(artifact.files[0]).name)
    disposition = f'attachment; filename="{artifact.kind}.tar"'
    return StreamingResponse(
        _tar(folder, artifact.files), media_type="application/x-tar", headers={"Content-Disposition": disposition}
    )


def _tar(folder: Path, files: list[str]) -> Iterator[bytes]:
    """A tar archive piece by piece: models are too large to be built in memory."""
    for name in files:
        path = folder / name
        header = tarfile.TarInfo(name)
        header.size = path.stat().st_size
        yield header.tobuf()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
        yield bytes(-header.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)

"""From an upload to the canonical dataset file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from privcode.ingest.archive import mine_archive
from privcode.ingest.contract import IngestLimits, IngestRequest, IngestSummary
from privcode.ingest.jsonl import read_rows
from privcode.ingest.rows import Row, write_rows

_DEFAULT_LIMITS = IngestLimits()


def ingest(
    upload: Path, *, request: IngestRequest, output: Path, limits: IngestLimits = _DEFAULT_LIMITS
) -> IngestSummary:
    """Read ``upload`` and write its rows to ``output`` as canonical JSONL; the same upload gives the same bytes.

    Meant for a child process with limits (:func:`privcode.ingest.child.ingest_in_child`): source is hostile, and a
    parser may crash. After an error there is no ``output``. Raises :class:`InvalidInput`, with the codes of
    :mod:`privcode.ingest.jsonl`, :mod:`privcode.ingest.tar` and :mod:`privcode.ingest.rows`.
    """
    skipped: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    rows: Iterable[Row]
    try:
        if request.format == "jsonl":
            rows = read_rows(upload, kind=request.kind, max_line_bytes=limits.max_line_bytes)
        else:
            rows = mine_archive(upload, request=request, limits=limits, skipped=skipped, removed=removed)
        return write_rows(rows, output=output, limits=limits, skipped=skipped, removed=removed)
    except BaseException:
        output.unlink(missing_ok=True)
        raise

"""Rows from a source archive: the functions of its Python files, in the order of path and position."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Final

from privcode.ingest.contract import IngestLimits, IngestRequest
from privcode.ingest.mining import MinedPair, is_test, mine
from privcode.ingest.rows import Row
from privcode.ingest.tar import read_archive

_PYTHON: Final = re.compile(r"\.py$")
# Suffixes of the other languages a row may have; their functions are not mined yet.
_OTHER_LANGUAGES: Final = re.compile(
    r"\.(js|mjs|cjs|jsx|ts|tsx|java|c|cc|cpp|cxx|h|hh|hpp|hxx|rs|php|sh|bash|cs|swift)$", re.IGNORECASE
)


def _read_pairs(
    path: Path, *, request: IngestRequest, limits: IngestLimits, skipped: Counter[str]
) -> list[tuple[str, MinedPair]]:
    pairs: list[tuple[str, MinedPair]] = []
    for file in read_archive(path, wanted=_PYTHON, limits=limits):
        if _OTHER_LANGUAGES.search(file.path):
            skipped["other_language"] += 1
        elif not _PYTHON.search(file.path):
            skipped["not_source"] += 1
        elif is_test(file.path):
            skipped["test"] += 1
        elif file.content is None:
            skipped["source_too_large"] += 1
        else:
            pairs += ((file.path, pair) for pair in mine(file.content, request=request, skipped=skipped))
    # Not in the archive's order: the same files packed another way are the same dataset.
    return sorted(pairs, key=lambda pair: (pair[0], pair[1].position, pair[1].problem, pair[1].solution))


def mine_archive(
    path: Path, *, request: IngestRequest, limits: IngestLimits, skipped: Counter[str], removed: Counter[str]
) -> list[Row]:
    """The rows of an archive without near-exact duplicates: of functions with the same syntax tree, or the same problem
    but for case and white space, the first is kept. Where each file is a privacy unit, that is done within a file
    only: what is kept of a unit must not depend on another. What gives no row is counted in ``skipped`` by
    reason, and the duplicates in ``removed``.

    Raises :class:`InvalidInput` as :func:`privcode.ingest.tar.read_archive` does.
    """
    rows: list[Row] = []
    seen: set[tuple[str | None, str]] = set()
    for source, pair in _read_pairs(path, request=request, limits=limits, skipped=skipped):
        unit_id = source if request.unit == "file" else None
        keys = {(unit_id, pair.fingerprint), (unit_id, " ".join(pair.problem.casefold().split()))}
        if keys & seen:
            removed["near_duplicate"] += 1
        else:
            rows.append(Row(problem=pair.problem, solution=pair.solution, lang="python", unit_id=unit_id))
        seen |= keys
    if request.kind == "prompts":
        rows = [Row(problem=row.problem, solution="", lang=row.lang) for row in rows]
    return rows

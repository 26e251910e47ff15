"""The canonical form of a dataset: one JSON object a line, UTF-8, without duplicates."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from privcode.errors import InvalidInput
from privcode.ingest.contract import IngestLimits, IngestSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """``solution`` is empty in a set of prompts. ``unit_id`` names the privacy unit; all rows of a dataset have it, or
    none."""

    problem: str
    solution: str
    lang: str
    unit_id: str | None = None

    def line(self) -> bytes:
        row = {"problem": self.problem, "solution": self.solution, "lang": self.lang}
        if self.unit_id is not None:
            row["unit_id"] = self.unit_id
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def write_rows(
    rows: Iterable[Row], *, output: Path, limits: IngestLimits, skipped: Counter[str], removed: Counter[str]
) -> IngestSummary:
    """Write each distinct row once, in the order of its first appearance. Rows of two units are never the same row.

    ``skipped`` and ``removed`` (how many near duplicates were left out before) are read when ``rows`` has ended. Keeps
    a 16-byte digest of each row and unit in memory, not the row. Raises :class:`InvalidInput`: ``too_many_rows``,
    ``dataset_too_large``, ``empty_dataset``.
    """
    total, written, size = 0, 0, 0
    seen: set[bytes] = set()
    units: set[bytes] = set()
    languages: Counter[str] = Counter()
    digest = hashlib.sha256()
    with output.open("wb") as file:
        for row in rows:
            total += 1
            if total > limits.max_rows:
                raise InvalidInput(
                    f"file: more than {limits.max_rows} rows", code="too_many_rows", field="file", value=limits.max_rows
                )
            line = row.line()
            key = _key(line)
            if key in seen:
                continue
            seen.add(key)
            size += len(line)
            if size > limits.max_output_bytes:
                raise InvalidInput(
                    f"file: the rows are larger than {limits.max_output_bytes} bytes",
                    code="dataset_too_large", field="file", value=limits.max_output_bytes,
                )  # fmt: skip
            file.write(line)
            digest.update(line)
            languages[row.lang] += 1
            if row.unit_id is not None:
                units.add(_key(row.unit_id.encode()))
            written += 1
    if not written:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(skipped.items()))
        raise InvalidInput(
            "file: there is no row in it" + (f"; left out: {reasons}" if reasons else ""),
            code="empty_dataset", field="file", value=0,
        )  # fmt: skip
    return IngestSummary(
        rows=written,
        units=len(units) or None,
        sha256=digest.hexdigest(),
        duplicates_removed=total - written + removed.total(),
        skipped=dict(sorted(skipped.items())),
        languages=dict(sorted(languages.items())),
    )


def _key(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()

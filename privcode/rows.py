"""Rows of artifacts, and which rows of a data set another job's filters let through."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from privcode.results import JsonObject


def read_rows(folder: Path) -> Iterator[JsonObject]:
    """The rows of the one JSONL file of an artifact's folder."""
    (path,) = folder.glob("*.jsonl")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def rows_of_kept_pairs(rows: Iterable[JsonObject], kept: Iterable[JsonObject]) -> list[JsonObject]:
    """The rows whose ``problem`` is that of one of the pairs ``kept``, in their order.

    Whether a row is in depends on itself and on ``kept`` alone, so that adding or removing one record changes the
    result by at most that record.
    """
    problems = {pair["problem"] for pair in kept}
    return [row for row in rows if row["problem"] in problems]

"""Rows of this Python's standard library, as the service mines them from an archive, for the other scripts here."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Literal

from privcode.demo_data import write_stdlib_archives
from privcode.ingest import IngestRequest
from privcode.ingest.pipeline import ingest


def stdlib_rows(
    visibility: Literal["private", "public"], *, max_problem_chars: int, max_solution_chars: int
) -> list[dict[str, str]]:
    """Problems and solutions of the three quarters that play the private code, or of the public quarter; functions and
    methods."""
    with tempfile.TemporaryDirectory() as folder:
        archives = write_stdlib_archives(Path(folder))
        output = Path(folder) / "rows.jsonl"
        request = IngestRequest(
            format="archive", kind="pairs", visibility=visibility, max_solution_chars=max_solution_chars,
            max_problem_chars=max_problem_chars, include_methods=True,
        )  # fmt: skip
        ingest(getattr(archives, visibility), request=request, output=output)
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

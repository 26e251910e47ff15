"""What is asked of ingestion, within which limits, and what it answers."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Size = Annotated[int, Field(ge=1)]
MIB: Final = 1024 * 1024


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class IngestRequest(_Contract):
    """What an upload is. The character limits and ``include_methods`` say which functions of an archive become rows;
    a JSONL upload says that by itself, and every one of its rows is taken.

    ``unit``, for pairs from an archive: whether each function is a privacy unit (``record``), or all of one source file
    together (``file``: the rows get the file's path as ``unit_id``). A JSONL upload has its own column ``unit_id``.
    """

    format: Literal["jsonl", "archive"]
    kind: Literal["pairs", "prompts"]
    visibility: Literal["private", "public"]
    min_solution_chars: Size = 60
    max_solution_chars: Size = Field(default=4000, validate_default=True)
    max_problem_chars: Size = 2000
    include_methods: bool = False
    unit: Literal["record", "file"] = "record"

    @field_validator("max_solution_chars")
    @classmethod
    def _not_below_the_minimum(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("min_solution_chars", value)
        if value < least:
            raise ValueError(f"{value} is below min_solution_chars {least}")
        return value

    @field_validator("unit")
    @classmethod
    def _files_are_in_archives(cls, value: str, info: ValidationInfo) -> str:
        if value == "file" and (info.data.get("format"), info.data.get("kind")) != ("archive", "pairs"):
            raise ValueError("file needs pairs from an archive; rows in JSON lines have the column unit_id")
        return value


class IngestLimits(_Contract):
    """What an upload may cost. An upload that goes beyond is refused, except that a source file above
    ``max_source_bytes`` is left out and counted (generated code).

    ``max_ratio``: unpacked bytes per uploaded byte, once more than 10 MiB are unpacked. ``memory_bytes`` is address
    space and ``time_limit_s`` wall-clock seconds, both of the child process.
    """

    max_line_bytes: Size = MIB
    max_rows: Size = 5_000_000
    max_output_bytes: Size = 4096 * MIB
    max_members: Size = 200_000
    max_member_bytes: Size = 64 * MIB
    max_source_bytes: Size = MIB
    max_unpacked_bytes: Size = 1024 * MIB
    max_ratio: Size = 100
    memory_bytes: Size = 2048 * MIB
    time_limit_s: Annotated[float, Field(gt=0, le=86400)] = 600.0


class IngestSummary(_Contract):
    """``sha256`` is of the canonical output file; ``units`` counts distinct values of ``unit_id``, None without that
    column; ``skipped`` counts by reason what of an archive gave no row (files, or functions); ``languages`` counts
    rows."""

    rows: int
    units: int | None = None
    sha256: str
    duplicates_removed: int
    skipped: dict[str, int]
    languages: dict[str, int]

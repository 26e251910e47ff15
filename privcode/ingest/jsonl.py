"""Rows from JSON lines, one line in memory at a time.

The upload may be private, so an error names the line, the column or the type, and never shows what the row says.
Lines are counted from 1; those with nothing but white space are passed over.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from privcode.errors import InvalidInput
from privcode.ingest.rows import Row
from privcode.languages import LANGUAGES

COLUMNS: Final = ("problem", "solution", "lang")  # and for pairs unit_id
DEFAULT_LANGUAGE: Final = "python"
MAX_UNIT_ID_CHARS: Final = 256

# A name that may be shown: columns that were swapped, or a row that is no row, would put their text in its place.
_SHOWABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_+#.-]{0,31}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_TYPE_NAMES: Final = {list: "array", bool: "boolean", float: "number", type(None): "null"}


class _Object(list[tuple[str, Any]]):
    """The members of a JSON object in order, so that a name that comes twice is seen."""


def _refuse(line: int, message: str, *, code: str, field: str = "file", value: str | int) -> NoReturn:
    raise InvalidInput(f"line {line}: {message}", code=code, field=field, value=value)


def _type_name(value: object) -> str:
    return "object" if isinstance(value, _Object) else _TYPE_NAMES.get(type(value), "string")


def _shown(name: str) -> str:
    return name if _SHOWABLE.fullmatch(name) else f"({len(name)} characters)"


def _decode(raw: bytes, line: int) -> str:
    if line == 1 and raw.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        _refuse(line, "starts with a byte order mark; plain UTF-8 is needed", code="byte_order_mark", value=line)
    if b"\0" in raw:
        _refuse(line, "has a NUL byte", code="nul_byte", value=line)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        # Refused after the handler, here and below: the original exception carries the row and must not be its context.
        position = error.start
    _refuse(line, f"is not UTF-8 at byte {position + 1}", code="not_utf8", value=line)


def _parse(text: str, line: int) -> dict[str, Any]:
    try:
        # Numbers are refused whatever they are; float also takes those with too many digits for int.
        value = json.loads(text, object_pairs_hook=_Object, parse_int=float)
    except json.JSONDecodeError as error:
        reason = f"is not JSON at character {error.pos + 1}"
    except RecursionError:
        reason = "is nested too deeply to be a row"
    else:
        if not isinstance(value, _Object):
            kind = _type_name(value)
            _refuse(line, f"must be an object with {', '.join(COLUMNS)}, not {kind}", code="not_an_object", value=kind)
        row = dict(value)
        if len(row) != len(value):
            names = [name for name, _ in value]
            twice = _shown(next(name for name in names if names.count(name) > 1))
            _refuse(line, f"has the column {twice} twice", code="duplicate_column", field=twice, value=twice)
        return row
    _refuse(line, reason, code="not_json", value=line)


def _text(row: dict[str, Any], column: str, line: int) -> str:
    value = row[column]
    if not isinstance(value, str):
        kind = _type_name(value)
        _refuse(line, f"{column} must be a string, not {kind}", code="not_a_string", field=column, value=kind)
    if "\0" in value:
        _refuse(line, f"{column} has a NUL character", code="nul_byte", field=column, value=line)
    if _SURROGATE.search(value):
        _refuse(line, f"{column} has half of a surrogate pair", code="not_utf8", field=column, value=line)
    return value


def _row(row: dict[str, Any], line: int, kind: Literal["pairs", "prompts"]) -> Row:
    columns = (*COLUMNS, "unit_id") if kind == "pairs" else COLUMNS
    if unknown := [name for name in row if name not in columns]:
        name = _shown(unknown[0])
        known = ", ".join(columns)
        _refuse(line, f"column {name} is not known; known are {known}", code="wrong_columns", field=name, value=name)
    if "problem" not in row:
        _refuse(line, "column problem is missing", code="wrong_columns", field="problem", value="problem")
    problem = _text(row, "problem", line)
    if not problem.strip():
        _refuse(line, "problem is empty", code="empty_problem", field="problem", value=line)
    lang = _text(row, "lang", line) if "lang" in row else DEFAULT_LANGUAGE
    if lang not in LANGUAGES:
        shown = _shown(lang)
        known = ", ".join(LANGUAGES)
        _refuse(line, f"lang {shown} is not one of {known}", code="unknown_language", field="lang", value=shown)
    # null says that there is none; anything else that is no string is a mistake of another kind.
    solution = "" if row.get("solution") is None else _text(row, "solution", line)
    if kind == "pairs" and not solution.strip():
        _refuse(line, "there is no solution", code="missing_solution", field="solution", value=line)
    if kind == "prompts" and solution:
        _refuse(line, "a prompt has no solution", code="unexpected_solution", field="solution", value=line)
    return Row(problem=problem, solution=solution, lang=lang, unit_id=_unit_id(row, line) if "unit_id" in row else None)


def _unit_id(row: dict[str, Any], line: int) -> str:
    unit_id = _text(row, "unit_id", line)
    if not unit_id.strip():
        _refuse(line, "unit_id is empty", code="empty_unit_id", field="unit_id", value=line)
    if len(unit_id) > MAX_UNIT_ID_CHARS:
        _refuse(
            line, f"unit_id is longer than {MAX_UNIT_ID_CHARS} characters", code="unit_id_too_long", field="unit_id",
            value=line,
        )  # fmt: skip
    return unit_id


def read_rows(path: Path, *, kind: Literal["pairs", "prompts"], max_line_bytes: int) -> Iterator[Row]:
    """Yield the rows of a JSONL file in their order.

    Raises :class:`InvalidInput` with one of the codes line_too_long, byte_order_mark, nul_byte, not_utf8, not_json,
    not_an_object, duplicate_column, wrong_columns, not_a_string, empty_problem, unknown_language, missing_solution,
    unexpected_solution, empty_unit_id, unit_id_too_long, unit_id_in_some_rows.
    """
    with_units: bool | None = None
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(max_line_bytes + 1):
            number += 1
            if len(raw) > max_line_bytes:
                _refuse(number, f"is longer than {max_line_bytes} bytes", code="line_too_long", value=number)
            text = _decode(raw, number)
            if text.isspace():
                continue
            row = _row(_parse(text, number), number, kind)
            if with_units is None:
                with_units = row.unit_id is not None
            elif with_units != (row.unit_id is not None):
                there = (
                    "is missing, and the rows before have it" if with_units else "is given, and no row before has it"
                )
                _refuse(
                    number, f"column unit_id {there}; all rows have it or none", code="unit_id_in_some_rows",
                    field="unit_id", value=number,
                )  # fmt: skip
            yield row

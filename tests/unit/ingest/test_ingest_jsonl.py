"""JSON lines: what is taken, what is refused, and that a refusal never shows a row."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privcode.errors import InvalidInput
from privcode.ingest import IngestLimits, IngestRequest, IngestSummary, ingest
from privcode.languages import LANGUAGES

PAIRS = IngestRequest(format="jsonl", kind="pairs", visibility="private")
PROMPTS = IngestRequest(format="jsonl", kind="prompts", visibility="public")
GOOD = {"problem": "Add two numbers.", "solution": "def add(a, b):\n    return a + b", "lang": "python"}


def run(tmp_path: Path, content: bytes, *, request: IngestRequest = PAIRS, **limits: int) -> IngestSummary:
    upload = tmp_path / "upload"
    upload.write_bytes(content)
    return ingest(upload, request=request, output=tmp_path / "out.jsonl", limits=IngestLimits(**limits))


def refusal(tmp_path: Path, content: bytes, *, request: IngestRequest = PAIRS, **limits: int) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        run(tmp_path, content, request=request, **limits)
    assert not (tmp_path / "out.jsonl").exists()
    return caught.value


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def written(tmp_path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]


def without(column: str) -> dict[str, str]:
    return {name: value for name, value in GOOD.items() if name != column}


def test_rows_are_kept_in_order_and_the_language_defaults_to_python(tmp_path: Path) -> None:
    rust = {"problem": "Zwölf 🦀", "solution": "fn f() {}", "lang": "rust"}
    summary = run(tmp_path, lines(rust, without("lang"), rust, GOOD))
    assert written(tmp_path) == [rust, GOOD]
    assert summary.rows == 2
    assert summary.duplicates_removed == 2
    assert summary.languages == {"python": 1, "rust": 1}
    assert summary.skipped == {}
    assert "🦀" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_line_ends_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    row = json.dumps(GOOD).encode()
    digests = {run(tmp_path, content).sha256 for content in (row, row + b"\n", row + b"\r\n\r\n", b"\n  \n" + row)}
    assert len(digests) == 1


def test_prompts_have_an_empty_solution(tmp_path: Path) -> None:
    run(tmp_path, lines({"problem": "p"}, {"problem": "q", "solution": "", "lang": "php"}), request=PROMPTS)
    assert written(tmp_path) == [
        {"problem": "p", "solution": "", "lang": "python"},
        {"problem": "q", "solution": "", "lang": "php"},
    ]


@pytest.mark.parametrize(
    ("row", "code", "field", "value"),
    [
        (b"{'problem': 'secret'}", "not_json", "file", 2),
        (b'{"problem": "secret', "not_json", "file", 2),
        (b'{"problem": "secret"} {}', "not_json", "file", 2),
        (b"[" * 100_000, "not_json", "file", 2),
        (b'["secret"]', "not_an_object", "file", "array"),
        (b'"secret"', "not_an_object", "file", "string"),
        (b"9" * 5000, "not_an_object", "file", "number"),
        (b"null", "not_an_object", "file", "null"),
        (b"NaN", "not_an_object", "file", "number"),
        (b'{"problem": "secret", "solution": "s", "prompt": "p"}', "wrong_columns", "prompt", "prompt"),
        (b'{"problem": "p", "def secret(): pass": "s"}', "wrong_columns", "(18 characters)", "(18 characters)"),
        (b'{"solution": "secret"}', "wrong_columns", "problem", "problem"),
        (b"{}", "wrong_columns", "problem", "problem"),
        (b'{"problem": "p", "problem": "secret", "solution": "s"}', "duplicate_column", "problem", "problem"),
        (b'{"problem": 7, "solution": "secret"}', "not_a_string", "problem", "number"),
        (b'{"problem": "secret", "solution": {"a": 1}}', "not_a_string", "solution", "object"),
        (b'{"problem": "secret", "solution": ["a"]}', "not_a_string", "solution", "array"),
        (b'{"problem": "secret", "solution": "s", "lang": null}', "not_a_string", "lang", "null"),
        (b'{"problem": true, "solution": "secret"}', "not_a_string", "problem", "boolean"),
        (b'{"problem": " \\n", "solution": "secret"}', "empty_problem", "problem", 2),
        (b'{"problem": "secret"}', "missing_solution", "solution", 2),
        (b'{"problem": "secret", "solution": null}', "missing_solution", "solution", 2),
        (b'{"problem": "secret", "solution": "\\t"}', "missing_solution", "solution", 2),
        (b'{"problem": "secret", "solution": "s", "lang": "cobol"}', "unknown_language", "lang", "cobol"),
        (b'{"problem": "p", "solution": "s", "lang": "a secret"}', "unknown_language", "lang", "(8 characters)"),
        (b'{"problem": "secret\\u0000", "solution": "s"}', "nul_byte", "problem", 2),
        (b'{"problem": "secret\x00", "solution": "s"}', "nul_byte", "file", 2),
        (b'{"problem": "p", "solution": "secret\\ud800"}', "not_utf8", "solution", 2),
        (b'{"problem": "secret \xff", "solution": "s"}', "not_utf8", "file", 2),
        (b'{"problem": "p", "solution": "s", "unit_id": "secret"}', "unit_id_in_some_rows", "unit_id", 2),
        (b'{"problem": "p", "solution": "s", "unit_id": ""}', "empty_unit_id", "unit_id", 2),
        (b'{"problem": "p", "solution": "s", "unit_id": " "}', "empty_unit_id", "unit_id", 2),
        (b'{"problem": "p", "solution": "s", "unit_id": null}', "not_a_string", "unit_id", "null"),
        (b'{"problem": "p", "solution": "s", "unit_id": 170001}', "not_a_string", "unit_id", "number"),
        (b'{"problem": "p", "solution": "s", "unit_id": "secret\\u0000"}', "nul_byte", "unit_id", 2),
        (b'{"problem": "p", "solution": "s", "unit_id": "' + b"secret" * 43 + b'"}', "unit_id_too_long", "unit_id", 2),
    ],
)
def test_a_bad_row_is_named_but_not_shown(tmp_path: Path, row: bytes, code: str, field: str, value: str | int) -> None:
    error = refusal(tmp_path, lines(GOOD) + row + b"\n" + lines(GOOD))
    assert (error.code, error.field, error.value) == (code, field, value)
    assert error.message.startswith("line 2: ")
    assert "secret" not in error.message
    assert error.__context__ is None


def by(unit_id: str, **columns: str) -> dict[str, str]:
    return {**GOOD, **columns, "unit_id": unit_id}


def test_units_are_kept_and_counted(tmp_path: Path) -> None:
    longest = "ü" * 256
    given = [by("alice"), by("bob"), by("alice"), by("alice", problem="Add."), by(longest)]
    summary = run(tmp_path, lines(*given))
    # Rows are the same only within a unit.
    assert written(tmp_path) == [by("alice"), by("bob"), by("alice", problem="Add."), by(longest)]
    assert (summary.rows, summary.units, summary.duplicates_removed) == (4, 3, 1)
    assert summary.languages == {"python": 4}


def test_without_the_column_nothing_is_counted_and_nothing_changes(tmp_path: Path) -> None:
    summary = run(tmp_path, lines(GOOD))
    assert summary.units is None
    assert written(tmp_path) == [GOOD]
    assert list(written(tmp_path)[0]) == ["problem", "solution", "lang"]


def test_a_row_without_the_column_after_rows_with_it_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, lines(by("secret"), by("secret2")) + b"\n" + lines(GOOD))
    assert (error.code, error.field, error.value) == ("unit_id_in_some_rows", "unit_id", 4)
    assert error.message == "line 4: column unit_id is missing, and the rows before have it; all rows have it or none"


def test_prompts_have_no_unit(tmp_path: Path) -> None:
    error = refusal(tmp_path, lines({"problem": "p", "unit_id": "secret"}), request=PROMPTS)
    assert (error.code, error.field) == ("wrong_columns", "unit_id")
    assert "secret" not in error.message


def test_a_prompt_with_a_solution_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, lines(GOOD), request=PROMPTS)
    assert (error.code, error.field, error.value) == ("unexpected_solution", "solution", 1)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"])
def test_a_byte_order_mark_is_refused(tmp_path: Path, mark: bytes) -> None:
    assert refusal(tmp_path, mark + lines(GOOD)).code == "byte_order_mark"


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t\n"])
def test_an_empty_dataset_is_refused(tmp_path: Path, content: bytes) -> None:
    error = refusal(tmp_path, content)
    assert (error.code, error.field, error.value) == ("empty_dataset", "file", 0)


def test_the_length_of_a_line_the_number_of_rows_and_the_output_have_limits(tmp_path: Path) -> None:
    row = lines(GOOD)
    assert run(tmp_path, row, max_line_bytes=len(row)).rows == 1
    (tmp_path / "out.jsonl").unlink()
    long = refusal(tmp_path, lines({"problem": "p", "solution": "s"}) + row, max_line_bytes=len(row) - 1)
    assert (long.code, long.value) == ("line_too_long", 2)
    assert refusal(tmp_path, row * 3, max_rows=2).code == "too_many_rows"
    assert refusal(tmp_path, row, max_output_bytes=len(row) - 1).code == "dataset_too_large"


def test_a_line_of_one_gigabyte_is_not_read(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    with upload.open("wb") as file:
        file.write(b'{"problem": "')
        file.truncate(2**30)
    with pytest.raises(InvalidInput) as caught:
        ingest(upload, request=PAIRS, output=tmp_path / "out.jsonl")
    assert (caught.value.code, caught.value.value) == ("line_too_long", 1)


text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1).filter(str.strip)
row = st.fixed_dictionaries({"problem": text, "solution": text, "lang": st.sampled_from(LANGUAGES)})
shared_folder = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@shared_folder
@given(st.lists(row, min_size=1, max_size=6), st.booleans())
def test_round_trip(tmp_path: Path, rows: list[dict[str, str]], ascii_only: bool) -> None:
    content = "".join(json.dumps(item, ensure_ascii=ascii_only) + "\n" for item in rows).encode()
    summary = run(tmp_path, content)
    output = (tmp_path / "out.jsonl").read_bytes()
    kept = [json.loads(line) for line in output.split(b"\n") if line]
    assert kept == [item for index, item in enumerate(rows) if item not in rows[:index]]
    assert summary.rows + summary.duplicates_removed == len(rows)
    again = run(tmp_path, output)
    assert (again.sha256, again.duplicates_removed) == (summary.sha256, 0)


near_json = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["problem", "solution", "lang", "php"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["problem", "solution", "lang"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@shared_folder
@given(
    st.binary(max_size=200) | st.lists(near_json, max_size=3).map(lambda rows: lines(*rows)),
    st.sampled_from([PAIRS, PROMPTS]),
)
def test_any_bytes_are_taken_or_refused(tmp_path: Path, content: bytes, request_: IngestRequest) -> None:
    with contextlib.suppress(InvalidInput):
        assert run(tmp_path, content, request=request_).rows > 0

"""Mining: which functions become pairs, and that a solution is the function and nothing else."""

from __future__ import annotations

import ast
import contextlib
import io
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from privcode.errors import InvalidInput
from privcode.ingest import IngestLimits, IngestRequest, ingest
from privcode.ingest.archive import mine_archive
from privcode.ingest.mining import MinedPair, is_test, mine
from privcode.ingest.rows import Row


def request(**options: object) -> IngestRequest:
    return IngestRequest.model_validate(
        {"format": "archive", "kind": "pairs", "visibility": "private", "min_solution_chars": 1} | options
    )


def mined(source: str | bytes, **options: object) -> tuple[list[MinedPair], Counter[str]]:
    skipped: Counter[str] = Counter()
    content = source if isinstance(source, bytes) else source.encode()
    return mine(content, request=request(**options), skipped=skipped), skipped


def packed(tmp_path: Path, files: Mapping[str, str]) -> Path:
    path = tmp_path / "upload.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            content = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def rows(tmp_path: Path, files: Mapping[str, str], **options: object) -> tuple[list[Row], Counter[str], Counter[str]]:
    skipped: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    found = mine_archive(
        packed(tmp_path, files), request=request(**options), limits=IngestLimits(), skipped=skipped, removed=removed
    )
    return found, skipped, removed


def function(name: str, doc: str, body: str = "return 1") -> str:
    return f'def {name}():\n    """{doc}"""\n    {body}\n'


def test_a_pair_is_the_question_and_the_source_without_docstring() -> None:
    source = '''\
# Copyright (c) 2026 Somebody. All rights reserved.
import os

def wrap(text, /, width=70, *lines, sep="é", **options) -> str:
    # before
    """Wrap the  text
    to a width.

    And some more.
    """

    # after
    joined = sep.join("ü" + line for line in lines)  # why
    return text[:width] + joined


x = 1
'''
    (pair,), skipped = mined(source)
    assert pair.problem == (
        "Write a Python function `wrap(text, /, width=70, *lines, sep='é', **options)`.\n\nWrap the text to a width."
    )
    assert pair.solution == (
        'def wrap(text, /, width=70, *lines, sep="é", **options) -> str:\n'
        "    # before\n"
        "    # after\n"
        '    joined = sep.join("ü" + line for line in lines)  # why\n'
        "    return text[:width] + joined"
    )
    assert not skipped


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f():\n    return 1\n", "no_docstring"),
        ('def f():\n    """  """\n    return 1\n', "no_docstring"),
        ('def f():\n    f"""Doc."""\n    return 1\n', "no_docstring"),
        ('def f():\n    """Doc."""\n', "no_body"),
        ('def f():\n    """Doc."""\n    pass\n', "no_body"),
        ('def f():\n    """Doc."""\n    ...\n', "no_body"),
        ('def f():\n    """Doc."""\n    raise NotImplementedError("no")\n', "no_body"),
        ('@cache\ndef f():\n    """Doc."""\n    return 1\n', "decorated"),
        ('async def f():\n    """Doc."""\n    return 1\n', "async"),
        ('def _f():\n    """Doc."""\n    return 1\n', "private_name"),
        ('def f(): "Doc."; return 1\n', "one_line"),
        ('def f():\n    """Doc."""; x = 1\n    return x\n', "one_line"),
        ('def f():\n    """Doc.""" \\\n    ; x = 1\n    return x\n', "layout"),
        ('def f():\n    """Doc \\0 zero."""\n    return 1\n', "not_text"),
        ('def f():\n    """Doc \\ud800."""\n    return 1\n', "not_text"),
        ('def f():\n    """Copyright (c) 2020."""\n    return 1\n', "licence_text"),
        ('def f():\n    """Doc."""\n    # SPDX-License-Identifier: MIT\n    return 1\n', "licence_text"),
    ],
)
def test_what_gives_no_pair_is_counted_by_reason(source: str, reason: str) -> None:
    pairs, skipped = mined(source)
    assert pairs == []
    assert skipped == {reason: 1}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_solution_chars": 22}, "solution_too_short"),
        ({"max_solution_chars": 20}, "solution_too_long"),
        ({"max_problem_chars": 35}, "problem_too_long"),
    ],
)
def test_sizes_are_limits_of_the_pair_itself(options: dict[str, int], reason: str) -> None:
    source = function("f", "Doc.", body="return 1")
    (pair,), _ = mined(source)
    assert (len(pair.problem), len(pair.solution)) == (36, 21)
    assert mined(source, max_solution_chars=21, min_solution_chars=21, max_problem_chars=36)[0] == [pair]
    assert mined(source, **options)[1] == {reason: 1}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"def f(:\n", "unparsable"),
        (b"x = '\0'\n", "unparsable"),
        (b"x = 10" + b"0" * 5000, "unparsable"),
        (b"(" * 300, "unparsable"),
        (b"x = " + b"-" * 50_000 + b"1\n", "unparsable"),
        (b"x = '\xe9'\n", "not_utf8"),
    ],
)
def test_a_file_that_is_not_python_is_counted(source: bytes, reason: str) -> None:
    assert mined(source + function("f", "Doc.").encode()) == ([], Counter({reason: 1}))


def test_a_line_is_what_the_parser_calls_a_line() -> None:
    source = "\ufeffx = 1\r\n\x0c\r\ny = '\u2028\x1c'\r\n" + function("f", "Doc.", body="return '\x0b\x85'").replace(
        "\n", "\r"
    )
    (pair,), _ = mined(source)
    assert pair.solution == "def f():\n    return '\x0b\x85'"


def test_methods_are_mined_only_on_request_and_moved_to_the_margin() -> None:
    source = '''\
class A:
\tdef f(self):
\t\t"""Doc."""
\t\ttext = """a
\tb
\t\tc"""
# at the margin
\t\treturn f"""{text}
\t\td"""
'''
    assert mined(source)[0] == []
    (pair,), _ = mined(source, include_methods=True)
    assert pair.problem.startswith("Write a Python function `f(self)`.")
    assert pair.solution.split("\n") == [
        "def f(self):", '\ttext = """a', "\tb", '\t\tc"""', "# at the margin", '\treturn f"""{text}', '\t\td"""',
    ]  # fmt: skip


def test_warnings_about_a_source_are_not_shown(recwarn: pytest.WarningsRecorder) -> None:
    assert len(mined(function("f", "Doc.", body=r"return '\d' is 1"))[0]) == 1
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    ("path", "test"),
    [
        ("tests/a.py", True),
        ("pkg/test/a.py", True),
        ("pkg/test_a.py", True),
        ("pkg/a_test.py", True),
        ("conftest.py", True),
        ("pkg/contest.py", False),
        ("attest/a.py", False),
        ("pkg/latest.py", False),
        ("unittest/case.py", False),
        ("doctest.py", False),
    ],
)
def test_tests_are_known_by_place_and_name(path: str, test: bool) -> None:
    assert is_test(path) is test


def test_rows_are_in_the_order_of_path_and_position_whatever_the_archives(tmp_path: Path) -> None:
    files = {"b.py": function("b1", "One.") + function("a2", "Two."), "a/z.py": function("z", "Three.", "return 2")}
    forward, _, _ = rows(tmp_path, files)
    backward, _, _ = rows(tmp_path, dict(reversed(files.items())))
    assert [row.problem.split("`")[1] for row in forward] == ["z()", "b1()", "a2()"]
    assert forward == backward


def test_near_exact_copies_are_removed(tmp_path: Path) -> None:
    files = {
        "a.py": function("f", "Doc."),
        "b.py": "def f():\n    '''Another text.'''\n\n    # a comment\n    return (1)\n",
        "c.py": function("f", "DOC.", body="return 2"),
        "d.py": function("f", "Different."),
        "e.py": function("g", "Doc.", body="return 3"),
    }
    found, _, removed = rows(tmp_path, files)
    assert [row.solution for row in found] == ["def f():\n    return 1", "def g():\n    return 3"]
    assert removed == {"near_duplicate": 3}


def test_other_files_are_counted(tmp_path: Path) -> None:
    code = function("f", "Doc.")
    files = {"a.py": code, "tests/b.py": code, "c.ts": "x", "d.CPP": "x", "README.md": "x", "e.py": "#" * 2_000_000}
    found, skipped, _ = rows(tmp_path, files)
    assert len(found) == 1
    assert skipped == {"test": 1, "other_language": 2, "not_source": 1, "source_too_large": 1}


def test_prompts_of_an_archive_have_no_solution(tmp_path: Path) -> None:
    upload = packed(tmp_path, {"a.py": function("f", "Doc.")})
    ingest(upload, request=request(kind="prompts", visibility="public"), output=tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == (
        '{"problem": "Write a Python function `f()`.\\n\\nDoc.", "solution": "", "lang": "python"}\n'
    )


def test_an_archive_without_a_pair_says_why(tmp_path: Path) -> None:
    upload = packed(tmp_path, {"a.py": "x = 1\n" + function("_f", "Doc."), "b.js": "x"})
    with pytest.raises(InvalidInput) as caught:
        ingest(upload, request=request(), output=tmp_path / "out.jsonl")
    assert caught.value.code == "empty_dataset"
    assert caught.value.message == "file: there is no row in it; left out: other_language 1, private_name 1"


snippets = st.lists(
    st.sampled_from(
        ["def f(a=1):", "class A:", '"""Doc."""', "'''a\n  b'''", "return 1", "x = 1; y = 2", "# note", "@d", "pass",
         "if x:", "    ", "  ", "\t", "\n", "\n", "\r\n", "\x0c", "\\\n", ";", "ü", "f'{x}'", '"a" "b"', "async "]
    ),
    max_size=30,
).map("".join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(snippets | st.text(max_size=60) | st.binary(max_size=60))
def test_any_source_gives_pairs_that_parse(source: str | bytes) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        for pair in mined(source, include_methods=True)[0]:
            (node,) = ast.parse(pair.solution).body
            assert isinstance(node, ast.FunctionDef)
            assert node.body


def test_a_file_can_be_the_unit(tmp_path: Path) -> None:
    one, other = function("f", "One."), function("g", "Two.", body="return 2")
    files = {"pkg/a.py": one + one + other, "pkg/b.py": one}
    found, _, removed = rows(tmp_path, files, unit="file")
    assert [(row.unit_id, row.problem.split("`")[1]) for row in found] == [
        ("pkg/a.py", "f()"),
        ("pkg/a.py", "g()"),
        ("pkg/b.py", "f()"),  # a copy in another unit stays: what is kept of a unit depends on that unit alone
    ]
    assert removed.total() == 1
    alone, _, _ = rows(tmp_path, {"pkg/b.py": one}, unit="file")
    assert alone == found[2:]
    assert {row.unit_id for row in rows(tmp_path, files)[0]} == {None}
    upload = packed(tmp_path, files)
    summary = ingest(upload, request=request(unit="file"), output=tmp_path / "out.jsonl")
    assert (summary.rows, summary.units) == (3, 2)


@pytest.mark.parametrize("options", [{"format": "jsonl"}, {"kind": "prompts"}])
def test_files_are_units_of_pairs_from_archives_only(options: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="unit_id"):
        request(unit="file", **options)

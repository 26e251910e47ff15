"""The first fenced code block of a completion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privcode.code_blocks import CodeBlock, first_code_block


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("python", "python"), ("py", "python"), ("Python3", "python"), ("", "python"), ("  ", "python"),
        ("python title='a.py'", "python"), ("Rust", "rust"), ("c++", "cpp"),
        ("Fortran", "fortran"), ("JavaScript", "javascript"),
    ],
)  # fmt: skip
def test_header_names_the_language(header: str, language: str) -> None:
    assert first_code_block(f"Here:\n```{header}\nx = 1\n```\n") == CodeBlock(language, "x = 1\n")


@pytest.mark.parametrize(
    "text",
    [
        "no code", "", "`inline`", "```inline``` only", "```python\nwhile True:\n    pass\n", "```", "```python",
        "```python\n```", "```python\n \n\n```\n```python\nx = 1\n```",
        "~~~python\nx = 1\n```\n", "````python\nx = 1\n```\n",
    ],
)  # fmt: skip
def test_no_block(text: str) -> None:
    assert first_code_block(text) is None


def test_the_first_of_two_blocks() -> None:
    assert first_code_block("```python\na = 1\n```\nand\n```python\nb = 2\n```") == CodeBlock("python", "a = 1\n")


def test_a_fence_inside_a_string_literal_does_not_cut_the_block() -> None:
    code = 'def doc():\n    return """\n```\nexample\n```\n"""\n'
    assert first_code_block(f"```python\n{code}```\nDone.") == CodeBlock("python", code)


def test_python_that_never_parses_ends_at_the_first_fence() -> None:
    assert first_code_block("```python\ndef f(:\n```\nText.\n```\nx = 1\n```") == CodeBlock("python", "def f(:\n")


def test_other_languages_end_at_the_first_fence() -> None:
    assert first_code_block("```rust\nfn main() {}\n```\n```\n") == CodeBlock("rust", "fn main() {}\n")


def test_tildes_longer_fences_and_fences_of_the_other_kind_inside() -> None:
    assert first_code_block("~~~py\nx = 1\n~~~") == CodeBlock("python", "x = 1\n")
    assert first_code_block("````\nx = '''\n```\n'''\n````") == CodeBlock("python", "x = '''\n```\n'''\n")
    assert first_code_block("~~~sh\necho\n```\n~~~~~  ") == CodeBlock("shell", "echo\n```\n")


def test_an_indented_fence_takes_its_indentation_from_the_code() -> None:
    text = "1. So:\n   ```python\n   if x:\n       y = 1\n\n   ```\n"
    assert first_code_block(text) == CodeBlock("python", "if x:\n    y = 1\n\n")


def test_windows_line_ends() -> None:
    assert first_code_block("Yes.\r\n```python\r\nx = 1\r\n```\r\n") == CodeBlock("python", "x = 1\n")


def test_hostile_nesting_and_null_bytes_do_not_raise() -> None:
    for code in ("(" * 50_000, "-" * 50_000 + "1", "x = '\0'"):
        block = first_code_block(f"```python\n{code}\n```")
        assert block == CodeBlock("python", code + "\n")


def test_warnings_of_generated_code_are_not_shown(recwarn: pytest.WarningsRecorder) -> None:
    first_code_block("```python\nx = '\\d' is 'a'\n```")
    assert not recwarn.list


@given(st.text(alphabet="`~\n pyx=1'\"\r\t", max_size=80))
def test_any_text_gives_a_block_that_is_part_of_it_or_nothing(text: str) -> None:
    block = first_code_block(text)
    if block is not None:
        assert block.code.strip()
        plain = text.replace("\r\n", "\n")
        assert all(line.strip() in plain for line in block.code.split("\n"))

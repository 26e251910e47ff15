"""The first fenced code block of a completion. One reading of a model's answer for every stage that runs code."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from itertools import chain
from typing import Final

from privcode.languages import language_name

# A backtick fence's header holds no backtick (CommonMark 4.5): ```like this``` is inline code.
_OPENING: Final = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,}(?=[^`]*$)|~{3,})(?P<header>.*)$")


@dataclass(frozen=True)
class CodeBlock:
    """``language``: by :func:`~privcode.languages.language_name`, ``python`` where the header names none. ``code``: the
    block without its fences."""

    language: str
    code: str


def first_code_block(text: str) -> CodeBlock | None:
    """The first fenced block of ``text``, with three or more backticks or tildes, indented or not.

    In Python a fence may stand inside a string literal, so successive closing fences are tried until the code parses;
    if it never does, the first one counts. None where there is no fence, where the first fence never closes, or where
    nothing but white space is between the two.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    start, opening = next(
        ((number, match) for number, line in enumerate(lines) if (match := _OPENING.match(line))), (0, None)
    )
    if opening is None:
        return None
    name = opening["header"].strip().split(maxsplit=1)
    language = language_name(name[0]) if name else "python"

    body = [_dedent(line, opening["indent"]) for line in lines[start + 1 :]]
    closing = re.compile(rf"^[ \t]*{re.escape(opening['fence'][0])}{{{len(opening['fence'])},}}[ \t]*$")
    ends = (number for number, line in enumerate(body) if closing.match(line))
    first = next(ends, None)
    if first is None:
        return None
    codes = ("".join(line + "\n" for line in body[:end]) for end in chain([first], ends))
    code = next(codes)
    if language == "python":
        code = next((longer for longer in chain([code], codes) if _parses(longer)), code)
    return CodeBlock(language=language, code=code) if code.strip() else None


def _dedent(line: str, indent: str) -> str:
    """``line`` without as much of ``indent`` as it has: the code of an indented block starts where its fence does."""
    shared = 0
    while shared < min(len(line), len(indent)) and line[shared] == indent[shared]:
        shared += 1
    return line[shared:]


def _parses(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True

"""Structural spans of code: what PrivSA holds to the public base model (arXiv 2512.05459, section 4.2)."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from privcode.languages import language_name
from services.trainer.core.grammars import SYNTAX, header_points

_PYTHON_HEADERS: Final = (
    ast.For, ast.AsyncFor, ast.While, ast.If, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef,
)  # fmt: skip
_LINE_END: Final = re.compile(r"(\r\n|\r|\n)")


def structural_spans(code: str, *, lang: str) -> list[tuple[int, int]]:
    """Character spans (start, end) of the header lines of ``for``, ``while``, ``if``, functions and classes.

    A span runs from the start of the node (``elif`` is an ``if``; decorators are not part of a definition's header) to
    the end of its first line. Sorted. What counts in a language other than Python is in :mod:`.grammars`. Empty for
    code that can't be parsed and for an unknown ``lang``, so that such a row is held to nothing.
    """
    name = language_name(lang)  # a dataset has the ten names alone; a model writes what it likes after its fence
    pieces = _LINE_END.split(code)  # line, line break, line, ..., line
    lines = pieces[::2]
    points: Sequence[tuple[int, int]]
    if name == "python":
        points = _python_points("\n".join(lines))
    elif name in SYNTAX:
        points = header_points("\n".join(lines), lang=name)
    else:
        return []
    starts = list(accumulate(map(len, pieces), initial=0))[:-1:2]
    return sorted(
        (starts[row] + _characters(lines[row], column), starts[row] + len(lines[row])) for row, column in points
    )


def _python_points(code: str) -> list[tuple[int, int]]:
    """Row from 0 and column in bytes of UTF-8 of every header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning would quote the code
            nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, _PYTHON_HEADERS)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [(node.lineno - 1, node.col_offset) for node in nodes]


def _characters(line: str, size: int) -> int:
    """How many characters the first ``size`` bytes of a line are."""
    return size if line.isascii() else len(line.encode("utf-8", "replace")[:size].decode())

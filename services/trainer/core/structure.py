"""Structural spans of code: what PrivSA holds to the public base model (arXiv 2512.05459, section 4.2)."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Final

_HEADERS: Final = (
    ast.For, ast.AsyncFor, ast.While, ast.If, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef,
)  # fmt: skip
_LINE_END: Final = re.compile(r"\r\n|\r|\n")


def structural_spans(code: str, *, lang: str) -> list[tuple[int, int]]:
    """Character spans (start, end) of the header lines of ``for``, ``while``, ``if``, functions and classes.

    A span runs from the start of the node (``elif`` is an ``if``; decorators are not part of a definition's header) to
    the end of its first line. Sorted. Empty for code that can't be parsed and for languages other than Python.
    """
    if lang.lower() not in ("python", "py"):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning would quote the code
            tree = ast.parse(code)
            nodes = [node for node in ast.walk(tree) if isinstance(node, _HEADERS)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    starts, ends = _lines(code)
    # Columns are bytes of UTF-8 to ast, but before a header there is only indentation, which is ASCII.
    return sorted((starts[node.lineno - 1] + node.col_offset, ends[node.lineno - 1]) for node in nodes)


def _lines(code: str) -> tuple[list[int], list[int]]:
    """Start and end of each line as Python's parser counts them; the end is before the line break."""
    breaks = [match.span() for match in _LINE_END.finditer(code)]
    return [0, *(end for _, end in breaks)], [*(start for start, _ in breaks), len(code)]

"""(problem, solution) pairs from Python source: a documented function, asked for by its signature and docstring.

The problem is "Write a Python function `name(arguments)`." and the docstring's first paragraph; the solution is the
function's own source, comments included, without the docstring, which would repeat the question.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from privcode.ingest.contract import IngestRequest

_LICENCE: Final = re.compile(
    r"copyright\s*(\(c\)|©|\d{4})|all rights reserved|SPDX-License-Identifier|licen[sc]ed under the"
    r"|permission is hereby granted|redistribution and use in source",
    re.IGNORECASE,
)
_NOT_TEXT: Final = re.compile("[\x00\ud800-\udfff]")
_TEST_PATH: Final = re.compile(r"(^|/)(tests?|testing|idle_test)/|(^|/)(test_[^/]*|[^/]*_test|tests|conftest)\.py$")


@dataclass(frozen=True, kw_only=True)
class MinedPair:
    """``fingerprint``: digest of the syntax tree, without docstring, comments and layout; copies share it."""

    position: int
    problem: str
    solution: str
    fingerprint: str


class _Skipped(Exception):
    """This function gives no pair; the argument is the reason that is counted."""


def is_test(path: str) -> bool:
    """Whether a file is a test by its place or name."""
    return _TEST_PATH.search(path) is not None


def _is_trivial(statement: ast.stmt) -> bool:
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Raise(exc=ast.Name(id="NotImplementedError") | ast.Call(func=ast.Name(id="NotImplementedError"))):
            return True
    return False


def _functions(tree: ast.Module, *, methods: bool) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    bodies = [tree.body]
    if methods:
        bodies += [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    for body in bodies:
        yield from (node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _dedented(lines: Sequence[str], node: ast.FunctionDef) -> list[str]:
    """The function's lines, moved to the margin; the inside of a string that spans lines stays as it is."""
    indent = lines[node.lineno - 1][: node.col_offset]
    inside = {
        number
        for part in ast.walk(node)
        if isinstance(part, ast.Constant | ast.JoinedStr)
        for number in range(part.lineno + 1, (part.end_lineno or part.lineno) + 1)
    }
    return [
        line if number in inside else line.removeprefix(indent)
        for number, line in enumerate(lines[node.lineno - 1 : node.end_lineno], start=node.lineno)
    ]


def _without_docstring(lines: Sequence[str], node: ast.FunctionDef) -> str:
    """Source of the function without the lines of its docstring, which must have them to itself."""
    docstring, after = node.body[0], node.body[1]
    first, last = docstring.lineno, docstring.end_lineno or docstring.lineno
    if lines[first - 1][: docstring.col_offset].strip() or after.lineno <= last:
        raise _Skipped("one_line")
    own = _dedented(lines, node) if node.col_offset else list(lines[node.lineno - 1 : node.end_lineno])
    body = own[last - node.lineno + 1 :]
    while not body[0].strip():
        del body[0]
    return "\n".join(own[: first - node.lineno] + body).rstrip()


def _pair(lines: Sequence[str], node: ast.FunctionDef | ast.AsyncFunctionDef, request: IngestRequest) -> MinedPair:
    if isinstance(node, ast.AsyncFunctionDef):
        raise _Skipped("async")
    if node.decorator_list:
        raise _Skipped("decorated")
    if node.name.startswith("_"):
        raise _Skipped("private_name")
    docstring = ast.get_docstring(node, clean=False)
    paragraph = " ".join(inspect.cleandoc(docstring or "").split("\n\n", 1)[0].split())
    if docstring is None or not paragraph:
        raise _Skipped("no_docstring")
    if all(_is_trivial(statement) for statement in node.body):
        raise _Skipped("no_body")
    # The docstring goes, so the source can only be longer than the solution.
    if sum(map(len, lines[node.lineno - 1 : node.end_lineno])) < request.min_solution_chars:
        raise _Skipped("solution_too_short")
    problem = f"Write a Python function `{node.name}({ast.unparse(node.args)})`.\n\n{paragraph}"
    if len(problem) > request.max_problem_chars:
        raise _Skipped("problem_too_long")
    solution = _without_docstring(lines, node)
    if len(solution) < request.min_solution_chars:
        raise _Skipped("solution_too_short")
    if len(solution) > request.max_solution_chars:
        raise _Skipped("solution_too_long")
    if _NOT_TEXT.search(problem):
        raise _Skipped("not_text")
    if _LICENCE.search(docstring) or _LICENCE.search(solution):
        raise _Skipped("licence_text")
    del node.body[0]
    tree = ast.dump(node)
    # Lines were taken by position; that they are this function and nothing else is checked, not assumed.
    if not _is_source_of(solution, tree):
        raise _Skipped("layout")
    fingerprint = hashlib.blake2b(tree.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return MinedPair(position=node.lineno, problem=problem, solution=solution, fingerprint=fingerprint)


def _is_source_of(solution: str, tree: str) -> bool:
    try:
        body = ast.parse(solution).body
    except SyntaxError:
        return False
    return len(body) == 1 and ast.dump(body[0]) == tree


def mine(content: bytes, *, request: IngestRequest, skipped: Counter[str]) -> list[MinedPair]:
    """The pairs of one source file, in their order.

    Takes functions at module level (and methods, if the request says so) that have a docstring and a real body, no
    decorator and no leading underscore, within the request's sizes. Counts what gives no pair in ``skipped``: the file
    (``not_utf8``, ``unparsable``), or a function and why. ``ast.parse`` may crash the process on hostile source.
    """
    try:
        source = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        skipped["not_utf8"] += 1
        return []
    # The parser's own idea of a line: a form feed or a Unicode line separator does not end one.
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    lines = source.split("\n")
    pairs: list[MinedPair] = []
    reasons: Counter[str] = Counter()
    try:
        with warnings.catch_warnings():
            # Invalid escapes and the like: the warning would show the source.
            warnings.simplefilter("ignore")
            for node in _functions(ast.parse(source), methods=request.include_methods):
                try:
                    pairs.append(_pair(lines, node, request))
                except _Skipped as reason:
                    reasons[str(reason)] += 1
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        skipped["unparsable"] += 1
        return []
    skipped.update(reasons)
    return sorted(pairs, key=lambda pair: pair.position)

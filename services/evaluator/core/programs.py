"""From a completion to a program that shows whether it solves its task.

Taking code out of an answer follows EvalPlus: of what the model wrote, imports, definitions and assignments count;
examples and prints around them don't. Both models of a job are read by the same rules.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import Final

from privcode.code_blocks import first_code_block
from privcode.results import Outcome
from privcode.sandbox import ExecutionResult
from services.evaluator.core.humaneval import Task

_OPEN_FENCE: Final = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*\n", re.MULTILINE)
_KEPT: Final = (
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
)  # fmt: skip


def solution_code(task: Task, completion: str) -> str:
    """The solution in a completion as a module that defines the task's function; empty where there is no code.

    The code is the first fenced block; what follows a fence that the token limit left open; or, without a fence, the
    whole text. Lines at its end that don't parse are dropped. A bare function body is put below the task's prompt.
    Whatever the task's prompt defines before its function is put in front.
    """
    block = first_code_block(completion)
    if block is not None:
        code = block.code
    else:
        fence = _OPEN_FENCE.search(completion)
        code = completion[fence.end() :] if fence else completion
    code = code.replace("\r\n", "\n").strip("\n")
    if not code.strip():
        return ""

    module = _longest_module(code)
    if module is not None and _defines(module, task.entry_point):
        return _assemble(task.preamble, module)
    body = code if code.startswith((" ", "\t")) else textwrap.indent(code, "    ")
    completed = _longest_module(f"{task.prompt.rstrip()}\n{body}", at_least=task.prompt.count("\n") + 1)
    if completed is not None:
        return _assemble("", completed)
    return f"{task.preamble}{code}\n"


def verification_program(task: Task, code: str, *, nonce: str) -> str:
    """``code``, the task's test, and a last line that prints ``nonce`` once the test has passed.

    Exit code 0 alone would count a solution that ends the process early. Since no solution knows ``nonce`` when it is
    written, none prints it by accident or by ``exit(0)``. It does not stop code made for this very check: a program
    can read its own source, replace what the test calls, or answer comparisons with objects that equal everything.
    """
    return f"{code}\n{task.test}\ncheck({task.entry_point})\n__import__('sys').stdout.write('\\n{nonce}\\n')\n"


def verified_outcome(result: ExecutionResult, *, nonce: str) -> Outcome:
    """The outcome of a :func:`verification_program`: ``passed`` only if the nonce is the last thing it printed."""
    if result.outcome is Outcome.PASSED and not result.stdout.endswith(f"\n{nonce}\n"):
        return Outcome.FAILED
    return result.outcome


def _longest_module(code: str, *, at_least: int = 1) -> ast.Module | None:
    """The longest run of lines from the start that parses and has a statement; None if none of ``at_least`` does."""
    lines = code.split("\n")
    for end in range(len(lines), at_least - 1, -1):
        module = _parsed("\n".join(lines[:end]))
        if module is not None:
            return module if module.body else None
    return None


def _parsed(code: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _defines(module: ast.Module, name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in module.body)


def _assemble(preamble: str, module: ast.Module) -> str:
    kept = [node for node in module.body if isinstance(node, _KEPT)]
    # A future import is an error anywhere but at the top.
    future = [node for node in kept if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    rest = [node for node in kept if node not in future]
    parts = [_source(future), preamble.strip("\n"), _source(rest)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _source(body: Sequence[ast.stmt]) -> str:
    return ast.unparse(ast.Module(body=list(body), type_ignores=[]))

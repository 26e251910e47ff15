"""Kinds of personal data and secrets, and the replacement of found spans by fixed placeholders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class PiiKind(StrEnum):
    """What is masked. The placeholder of a kind is its name in angle brackets."""

    EMAIL = "EMAIL"
    NAME = "NAME"
    IP_ADDRESS = "IP_ADDRESS"
    KEY = "KEY"
    PASSWORD = "PASSWORD"
    USER_NAME = "USER_NAME"

    @property
    def placeholder(self) -> str:
        return f"<{self.value}>"


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` (exclusive) are a value of ``kind``."""

    start: int
    end: int
    kind: PiiKind


_PLACEHOLDER: Final = re.compile("|".join(re.escape(kind.placeholder) for kind in PiiKind))
_FREE, _BLOCKED, _TAKEN = 0, 1, 2
_FREE_RUN: Final = re.compile(b"\x00+")


def maskable(code: str, spans: Iterable[Span], *, within: Sequence[tuple[int, int]]) -> list[Span]:
    """The parts of ``spans`` that are masked, sorted and without overlap.

    ``spans`` come in the order of their precedence: one that overlaps an earlier one is left out. Nothing outside of
    ``within`` (so that code still parses), and no placeholder that is there already, is masked; what remains of a span
    is masked in parts.
    """
    state = bytearray([_BLOCKED]) * len(code)
    for start, end in within:
        state[start:end] = bytes(end - start)
    for match in _PLACEHOLDER.finditer(code):
        state[match.start() : match.end()] = bytes([_BLOCKED]) * (match.end() - match.start())
    parts = []
    for span in spans:
        if _TAKEN in state[span.start : span.end]:
            continue
        for run in _FREE_RUN.finditer(state, span.start, span.end):
            if not code[run.start() : run.end()].isspace():
                parts.append(Span(run.start(), run.end(), span.kind))
                state[run.start() : run.end()] = bytes([_TAKEN]) * (run.end() - run.start())
    return sorted(parts, key=lambda part: part.start)


def replace(code: str, spans: Sequence[Span]) -> tuple[str, Counter[PiiKind]]:
    """``code`` with each of the sorted ``spans`` replaced by its placeholder, and how many there were of each kind."""
    pieces, last = [], 0
    for span in spans:
        pieces += [code[last : span.start], span.kind.placeholder]
        last = span.end
    return "".join([*pieces, code[last:]]), Counter(span.kind for span in spans)

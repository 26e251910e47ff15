"""String literals and comments of many languages, found by one scan that also takes code that does not compile."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# Unclosed literals and comments end with the line or with the text, so that the scan stays linear.
_TRIPLE = r"(?P<triple>'''|\"\"\")(?P<body3>(?:[^\\]|\\.)*?)(?:(?P=triple)|\Z)"
_TRIPLE_DOUBLE = r"(?P<triple>\"\"\")(?P<body3>(?:[^\\]|\\.)*?)(?:(?P=triple)|\Z)"
_RAW = r"(?:R\"(?P<rawcpp>[^\s()\\\"]{0,16})\((?P<bodyraw>.*?)(?:\)(?P=rawcpp)\"|\Z))"
_RAW_RUST = r"(?:(?<!\w)r(?P<hashes>#{1,8})\"(?P<bodyrust>.*?)(?:\"(?P=hashes)|\Z))"
_DOUBLE = r"\"(?P<body1>(?:[^\"\\\n]|\\.)*)(?:\"|(?=\n)|\Z)"
_SINGLE = r"'(?P<body2>(?:[^'\\\n]|\\.)*)(?:'|(?=\n)|\Z)"
_BACKTICK = r"`(?P<body4>(?:[^`\\]|\\.)*)(?:`|\Z)"
_CHARACTER = r"'(?:[^'\\\n]|\\[^\n']{1,10}|\\')'"
_HASH = r"(?P<comment>#[^\n]*)"
_SLASHES = r"(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))"
_SLASHES_OR_HASH = r"(?P<comment>(?://|#)[^\n]*|/\*.*?(?:\*/|\Z))"
_TEXT_COMMENT = r"(?P<comment>(?<!\S)(?:#|--\s)[^\n]*)"
_BODIES: Final = ("body1", "body2", "body3", "body4", "bodyraw", "bodyrust")


@dataclass(frozen=True, kw_only=True)
class _Syntax:
    tokens: re.Pattern[str]
    in_code: bool = False  # mask outside of literals and comments as well
    bare_values: bool = False  # values need no quotes: shell, YAML, plain text


def _syntax(*tokens: str, in_code: bool = False, bare_values: bool = False) -> _Syntax:
    return _Syntax(tokens=re.compile("|".join(tokens), re.DOTALL), in_code=in_code, bare_values=bare_values)


_PYTHON = _syntax(_HASH, _TRIPLE, _DOUBLE, _SINGLE)
_C_LIKE = _syntax(_SLASHES, _RAW, _RAW_RUST, _TRIPLE_DOUBLE, _DOUBLE, _CHARACTER, _BACKTICK)
# JSX and PHP hold text between tags.
_JAVASCRIPT = _syntax(_SLASHES, _DOUBLE, _SINGLE, _BACKTICK, in_code=True)
_PHP = _syntax(_SLASHES_OR_HASH, _DOUBLE, _SINGLE, in_code=True)
_TEXT = _syntax(_TEXT_COMMENT, _DOUBLE, _SINGLE, in_code=True, bare_values=True)
_BY_LANGUAGE: Final = {
    **dict.fromkeys(("python", "py", "ruby", "julia", "r", "perl"), _PYTHON),
    **dict.fromkeys(
        ("java", "c", "cpp", "c++", "csharp", "c#", "rust", "go", "swift", "kotlin", "scala", "dart"), _C_LIKE
    ),
    **dict.fromkeys(("javascript", "js", "typescript", "ts", "jsx", "tsx"), _JAVASCRIPT),
    "php": _PHP,
}
_ESCAPE: Final = re.compile(r"\\[^\n]")
_PREFIX: Final = re.compile(r"(?<!\w)[A-Za-z$@]{1,3}\Z")


@dataclass(frozen=True, kw_only=True)
class Literal:
    """A string literal. ``opening`` is where its prefix or quote begins; ``start`` to ``end`` is between the quotes."""

    opening: int
    start: int
    end: int
    prefix: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Code in a language, taken apart.

    ``view`` is the code, letter by letter at the same places, with escape sequences blanked: in ``"\\nmira@..."`` the
    address does not begin with an n. ``within`` are the sorted spans that may be masked.
    """

    code: str
    view: str
    python: bool
    bare_values: bool
    literals: tuple[Literal, ...]
    within: tuple[tuple[int, int], ...]


def parse_source(code: str, *, lang: str) -> Source:
    """Languages other than those of programs (shell, YAML, JSON, SQL, unknown) are taken as text with quotes."""
    syntax = _BY_LANGUAGE.get(lang.strip().lower(), _TEXT)
    literals, within = [], []
    for match in syntax.tokens.finditer(code):
        groups = match.groupdict()
        if groups.get("comment") is not None:
            within.append(match.span("comment"))
            continue
        body = next((name for name in _BODIES if groups.get(name) is not None), None)
        if body is None:
            continue  # a character literal
        start, end = match.span(body)
        within.append((start, end))
        if end < match.end():  # closed
            found = _PREFIX.search(code, max(0, match.start() - 4), match.start())
            prefix = found[0].lower() if found else ""
            literals.append(Literal(opening=match.start() - len(prefix), start=start, end=end, prefix=prefix))
    return Source(
        code=code,
        view=_ESCAPE.sub("  ", code),
        python=syntax is _PYTHON,
        bare_values=syntax.bare_values,
        literals=tuple(literals),
        within=((0, len(code)),) if syntax.in_code else tuple(within),
    )

"""A Java source's file name and main class. A public class must be in a file of its name, whatever that is."""

from __future__ import annotations

import re
from typing import Final, TypedDict

# What is left open ends with the line or the text: going back to try again at each opening would take quadratic time.
_NOT_CODE: Final = re.compile(
    r"//[^\n]*"
    r"|/\*.*?(?:\*/|\Z)"
    r'|"""(?:\\.|[^\\])*?(?:"""|\\?\Z)'
    r'|"(?:\\.|[^"\\\n])*"?'
    r"|'(?:\\.|[^'\\\n])*'?",
    re.DOTALL,
)
_TOKEN: Final = re.compile(
    r"(?P<brace>[{}])"
    r"|(?P<public>\bpublic\s+(?:(?:final|abstract|sealed|non-sealed|strictfp|static)\s+)*@?)?"
    r"\b(?:class|interface|enum|record)\s+(?P<type>[\w$]+)"
    r"|(?P<main>\bstatic\s+(?:(?:public|final|synchronized|strictfp)\s+)*void\s+main\s*\()"
)
# A file's name has at most 255 bytes, an argument 128 KiB; what is longer is left for the compiler to refuse.
_LONGEST_NAME: Final = 240
_PACKAGE: Final = re.compile(r"^[ \t]*package\s+([\w.]+)\s*;", re.MULTILINE)


class JavaSource(TypedDict):
    file: str
    code: str
    entry: str | None


def java_source(code: str) -> JavaSource:
    """``file``: named after the public top-level type. ``entry``: the full name of the first top-level type that has
    ``static void main``; None without one, or with a name that no file can have."""
    bare = _NOT_CODE.sub(" ", code)
    depth = 0
    public = current = entry = None
    for token in _TOKEN.finditer(bare):
        if token["brace"]:
            depth += 1 if token["brace"] == "{" else -1
        elif token["main"]:
            entry = entry or (current if depth == 1 else None)
        elif depth == 0:
            current = token["type"]
            public = public or (current if token["public"] else None)
    package = _PACKAGE.search(bare)
    if entry and package:
        entry = f"{package[1]}.{entry}"
    return {"file": f"{_short(public) or 'Main'}.java", "code": code, "entry": _short(entry)}


def _short(name: str | None) -> str | None:
    return name if name and len(name.encode(errors="replace")) <= _LONGEST_NAME else None

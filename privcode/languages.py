"""The ten languages, and the names that people and models write for them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, get_args

Language = Literal["python", "javascript", "typescript", "java", "cpp", "rust", "php", "shell", "csharp", "swift"]
LANGUAGES: Final[tuple[str, ...]] = get_args(Language)

_ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "py": "python", "python3": "python",
        "js": "javascript", "jsx": "javascript", "mjs": "javascript", "node": "javascript",
        "ts": "typescript", "tsx": "typescript",
        "c++": "cpp", "cc": "cpp", "cxx": "cpp",
        "rs": "rust",
        "bash": "shell", "sh": "shell", "zsh": "shell",
        "c#": "csharp", "cs": "csharp",
    }
)  # fmt: skip


def language_name(written: str) -> str:
    """The name of :data:`LANGUAGES` for what a fence or a column says; what is none of them, in lower case."""
    name = written.lower()
    return _ALIASES.get(name, name)

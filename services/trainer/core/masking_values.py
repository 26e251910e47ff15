"""Whether a value looks like a password, a key, a user name or a person's name, or like a word of the program."""

from __future__ import annotations

import re
from typing import Final

from services.trainer.core.masking_words import COMPANY, NO_NAME, NO_VALUE, PARTICLES

_TEMPLATE: Final = re.compile(
    r"%(?:\(\w+\))?[sdr]|\{\{.*\}\}|\{[\w.:!]*\}|\$[A-Z_][A-Z0-9_]*|\$\{[^}]*\}.*|\$\(.*|\$\d|\?|[:@][a-z_]+"
    r"|<[^<>]*>|\[[\w -]*\]|[*xX.•_-]+|\^.*\$"
)
_INTERPOLATION: Final = re.compile(r"\$\{|#\{|\\\(|\{\}|\{\d\}")
_WORD: Final = re.compile(r"[A-Za-z]+(?:[_ -][A-Za-z]+)*")
_WORD_OF_PROGRAM: Final = re.compile(
    r"(?:your|my|the|insert|enter|some|new)[_ -]|password|passwd|username|_token|_key|_user"
)
_KEY: Final = re.compile(r"[\w.~+/=:-]{10,4000}")
_USER_NAME: Final = re.compile(r"[A-Za-z][\w.-]{1,63}")
_DIGIT: Final = re.compile(r"\d")
_NAME_PART: Final = re.compile(r"[ ]?([^\W\d_](?:[^\W\d_]|['’-](?=[^\W\d_])){0,30}\.?)")


def is_stand_in(value: str, *, prefix: str = "") -> bool:
    """Whether a literal's text is no value but a template, an example's stand-in or a word such as ``required``."""
    if _TEMPLATE.fullmatch(value) or _INTERPOLATION.search(value) or value.strip().lower() in NO_VALUE:
        return True
    if "f" in prefix or "$" in prefix:
        return "{" in value
    lower = value.lower()
    return _WORD.fullmatch(value) is not None and _WORD_OF_PROGRAM.search(lower) is not None


def is_password(value: str) -> bool:
    """A password has no white space, or is up to three words with a digit. Paths, addresses of pages: no."""
    if len(value) < 3 or value.startswith(("/", "./")) or "://" in value or "\n" in value:
        return False
    words = value.split()
    return len(words) == 1 or (len(words) <= 3 and _DIGIT.search(value) is not None and ":" not in value)


def is_key(value: str) -> bool:
    """At least ten characters without white space, letters and digits among them, eight of them different."""
    return (
        _KEY.fullmatch(value) is not None
        and "://" not in value
        and _DIGIT.search(value) is not None
        and any(character.isalpha() for character in value)
        and len(set(value)) >= 8
    )


def is_user_name(value: str) -> bool:
    """One word that begins with a letter; accounts that belong to nobody (``root``, ``admin``, ``guest``) are none."""
    return _USER_NAME.fullmatch(value) is not None and not is_stand_in(value)


def is_person(value: str, *, single: bool) -> bool:
    """Whether all of ``value`` is a person's name: two to five capitalised words, or one if ``single``."""
    text = value.strip()
    return bool(text) and person_length(text, fewest=1 if single else 2) == len(text)


def person_length(text: str, *, fewest: int = 2) -> int:
    """How many characters at the start of ``text`` are a person's name of at least ``fewest`` words; 0 for none."""
    length, position, words = 0, 0, 0
    while words < 5 and (match := _NAME_PART.match(text, position)):
        part = match[1].rstrip(".")
        initial = len(part) == 1 and match[1].endswith(".")
        particle = words > 0 and part in PARTICLES
        if part.lower() in NO_NAME or not (particle or part[0].isupper()):
            break
        if position and not match[0].startswith(" "):
            break
        position, words = match.end(), words + 1
        if not particle and not (initial and words == 1 and fewest == 1):
            length = position if initial else match.start(1) + len(part)
        if match[1].endswith(".") and not initial:
            break  # the end of a sentence
    following = text[position : position + 40].split()
    if words < fewest or (following and following[0].lower().rstrip(".,") in COMPANY):
        return 0
    return length

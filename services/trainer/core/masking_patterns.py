"""Values that are known by their own form: e-mail and IP addresses, keys of well-known services, names in by-lines."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

from services.trainer.core.masking_spans import PiiKind, Span
from services.trainer.core.masking_syntax import Source
from services.trainer.core.masking_values import is_key, is_user_name, person_length
from services.trainer.core.masking_words import GIVEN_NAMES

# Every repetition is bounded or begins where no other match can begin: the time is linear in the text.
_EMAIL: Final = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@(?P<domain>[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}\.(?P<top>[^\W\d_]{2,24}))(?!\w)"
)
_NOT_TOP_LEVEL: Final = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js"})  # icon@2x.png

_IPV4: Final = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6: Final = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{6,39}(?![\w:])")
_VERSION_BEFORE: Final = re.compile(r"(?:version\w*|release|revision|build|[=<>~^]=|(?<!\w)v)[\"'\s:=(]{0,6}\Z", re.I)
_IMAGE_TAG_BEFORE: Final = re.compile(r"[A-Za-z][\w.-]*:\Z")  # repo/app:1.4.2.9

_KEY_FORMS: Final = re.compile(
    r"(?<![\w-])(?:"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_\w{20,255}|glpat-[\w-]{20,64}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}|xapp-[A-Za-z0-9-]{10,255}"
    r"|eyJ[\w-]{6,4000}\.[\w-]{6,4000}\.[\w-]{0,4000}"
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,255}"
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,255}|sk-[\w-]{20,255}"
    r"|SG\.[\w-]{16,64}\.[\w-]{16,64}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,255}|hf_[A-Za-z0-9]{30,64}"
    r")(?![\w-])"
)
_SLACK_HOOK: Final = re.compile(r"hooks\.slack\.com/services/(?P<key>[A-Za-z0-9/]{20,100})")
_AUTHORIZATION: Final = re.compile(r"(?<!\w)(?:Bearer|Basic|token)[ ]{1,4}(?P<key>[\w.~+/=-]{12,4000})")
_PEM_BEGIN: Final = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END: Final = re.compile(r"-----END [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----")

_URL_LOGIN: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]{1,20}://(?P<user>[^\s:/@'\"<>{}$]{0,64}):(?P<password>[^\s:/@'\"<>{}]{1,128})@"
)
_CURL_LOGIN: Final = re.compile(r"(?<!\S)(?:-u|--user)[ =]{1,4}(?P<user>[\w.-]{1,64}):(?P<password>[^\s'\"$]{1,128})")
_SSHPASS: Final = re.compile(r"(?<!\w)sshpass[ ]{1,4}-p[ ]{0,2}[\"']?(?P<password>[^\s\"'$]{3,128})")
_HOME: Final = re.compile(r"(?<!\w)/(?:home|Users)/(?P<user>[A-Za-z][\w.-]{1,38})")
_TODO: Final = re.compile(r"(?<!\w)(?:TODO|FIXME|XXX|HACK)\(@?(?P<user>[A-Za-z][\w.-]{1,38})\)")
_BYLINE: Final = re.compile(
    r"(?:@author|(?<!\w)(?:authors?|maintainers?|copyright|©|"
    r"(?:written|created|developed|modified|maintained|reviewed|contributed|reported|co-authored|signed-off)[ -]by))"
    r"(?:[ \t]{0,4}(?:\(c\)|©|:|,|-|\d{4}|by(?=\s)))*[ \t]{1,8}",
    re.IGNORECASE,
)
_LOWER_AUTHOR: Final = re.compile(r"@author[ \t]{1,8}(?P<user>[a-z][\w.-]{1,38})[ \t]*$", re.MULTILINE)
_CAPITALISED: Final = re.compile(r"(?<![\w’-])[^\W\d_a-z]\w{1,14}(?= )")


def find_keys(source: Source) -> Iterator[Span]:
    """Private keys, and keys in the form of a well-known service or of an authorization header."""
    yield from _private_keys(source.view)
    yield from _keys(source.view)


def find_patterns(source: Source) -> Iterator[Span]:
    """Logins, addresses and people, in the order of their precedence."""
    yield from _logins(source.view)
    yield from _emails(source.view)
    yield from _ip_addresses(source.view)
    yield from _people(source.view)


def _private_keys(text: str) -> Iterator[Span]:
    start = 0
    while begin := _PEM_BEGIN.search(text, start):
        end = _PEM_END.search(text, begin.end())
        start = end.end() if end else len(text)
        yield Span(begin.start(), start, PiiKind.KEY)


def _keys(text: str) -> Iterator[Span]:
    for match in _KEY_FORMS.finditer(text):
        yield Span(*match.span(), PiiKind.KEY)
    for match in _SLACK_HOOK.finditer(text):
        yield Span(*match.span("key"), PiiKind.KEY)
    for match in _AUTHORIZATION.finditer(text):
        if is_key(match["key"]):
            yield Span(*match.span("key"), PiiKind.KEY)


def _logins(text: str) -> Iterator[Span]:
    for pattern in (_URL_LOGIN, _CURL_LOGIN):
        for match in pattern.finditer(text):
            if not re.fullmatch(r"\$\w+|%s|pass(?:word|wd)?|pwd?", match["password"], re.IGNORECASE):
                yield Span(*match.span("password"), PiiKind.PASSWORD)
            if is_user_name(match["user"]):
                yield Span(*match.span("user"), PiiKind.USER_NAME)
    for match in _SSHPASS.finditer(text):
        yield Span(*match.span("password"), PiiKind.PASSWORD)
    for pattern in (_HOME, _TODO, _LOWER_AUTHOR):
        for match in pattern.finditer(text):
            if is_user_name(match["user"]):
                yield Span(*match.span("user"), PiiKind.USER_NAME)


def _emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text):
        remote = match[0].startswith("git@")  # git@github.com:organisation/repository
        if not remote and match["top"].lower() not in _NOT_TOP_LEVEL:
            yield Span(*match.span(), PiiKind.EMAIL)


def _ip_addresses(text: str) -> Iterator[Span]:
    for match in (*_IPV4.finditer(text), *_IPV6.finditer(text)):
        if _is_somebodys_address(match[0]) and not _is_version(text, match):
            yield Span(*match.span(), PiiKind.IP_ADDRESS)


def _is_somebodys_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or text.startswith("255."):
        return False  # what a program means by it is the same everywhere: this machine, any, a net mask
    # "[::2]" and "face::bed" are slices and C++ scopes more often than addresses.
    return address.version == 4 or (
        any(character.isdigit() for character in text) and any(len(group) > 2 for group in text.split(":"))
    )


def _is_version(text: str, match: re.Match[str]) -> bool:
    before = text[max(0, match.start() - 30) : match.start()]
    if _IMAGE_TAG_BEFORE.search(before):
        return not before.endswith(("ffff:", "FFFF:"))  # ::ffff:10.1.2.3
    return _VERSION_BEFORE.search(before) is not None


def _people(text: str) -> Iterator[Span]:
    for match in _BYLINE.finditer(text):
        if length := person_length(text[match.end() : match.end() + 80]):
            yield Span(match.end(), match.end() + length, PiiKind.NAME)
    for match in _CAPITALISED.finditer(text):
        if match[0] in GIVEN_NAMES and (length := person_length(text[match.start() : match.start() + 80])):
            yield Span(match.start(), match.start() + length, PiiKind.NAME)

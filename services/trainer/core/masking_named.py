"""Values that are known by the name they stand under: assigned to it, keyed by it, compared to it, returned by it."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

from services.trainer.core.masking_roles import (
    Role,
    kind_of_value,
    roles_of,
    roles_of_argument,
    roles_of_function,
)
from services.trainer.core.masking_spans import PiiKind, Span
from services.trainer.core.masking_syntax import Literal, Source

# How far before a literal its name is looked for. It also bounds the time of the patterns below, which end with \Z.
_WINDOW: Final = 160
_NAME: Final = r"(?<![\w$])(?P<name>[A-Za-z_$][\w$-]{0,80})"
_QUOTED_NAME: Final = r"[\"'](?P<name>[\w.-]{1,80})[\"']"
_TYPE: Final = r"(?:\??[ ]{0,2}:[ ]{0,2}[\w.<>\[\]|&? ]{1,40}?)?"
_ASSIGNED: Final = re.compile(
    rf"(?:{_QUOTED_NAME.replace('name', 'key')}[ ]*[\])]?|{_NAME}){_TYPE}"
    r"\s{0,8}(?P<operator>=>|[=!]==?|:=|=|:|\+=)\s{0,8}"
    r"(?:(?:String::from|SecretStr|Secret|Some|bytes|str|std::string|new String)?[(\[{])?\s{0,8}\Z"
)
_FALLBACK: Final = re.compile(rf"{_NAME}{_TYPE}[ ]{{0,4}}=[^\n]{{1,80}}?(?:\bor|\|\||\?\?|\belse|:)[ ]{{1,4}}\Z")
_DEFINED: Final = re.compile(rf"#[ ]?define[ ]{{1,8}}{_NAME}[ ]{{1,40}}\Z")
_CALLED: Final = re.compile(rf"{_NAME}\s{{0,4}}\(\s{{0,8}}\Z")
_COMPARED: Final = re.compile(rf"{_NAME}\.(?:equals|equalsIgnoreCase|Equals)\(\Z")
_KEY_ARGUMENT: Final = re.compile(rf"\(\s{{0,8}}{_QUOTED_NAME}\s{{0,4}},\s{{0,8}}\Z")
_OTHER_OWNERS: Final = (_COMPARED, _KEY_ARGUMENT, _FALLBACK, _DEFINED)
_LOGIN_CALL: Final = re.compile(
    r"(?<!\w)(?:(?:\w{0,20}auth|log_?in|authenticate|\w{0,24}credentials?)[ ]?[=:]?[ ]?\(\s{0,8}"
    r"|(?:\w{0,10}connection|PDO)\([\w$.]{1,40},\s{0,8})"  # after the address
    r"(?P<first>(?:\"[^\"\n]{0,80}\"|'[^'\n]{0,80}'),\s{0,8})?\Z",
    re.IGNORECASE,
)
_RETURNED: Final = re.compile(
    r"(?<!\w)(?:return|yield|echo|printf)\b\s{0,4}[(\[]?\s{0,4}"
    r"(?P<earlier>(?:(?:\"[^\"\n]{0,60}\"|'[^'\n]{0,60}'),\s{0,4}){0,4})\Z"
)
_RETURNED_FALLBACK: Final = re.compile(r"(?<!\w)return\b[^\n]{0,80}(?:\bor|\?\?|\|\||\?|:|\belse)\s{1,4}\Z")
_BODY_OPENS: Final = re.compile(r"[^{}\n\"']{0,160}\)[^{}\n\"']{0,60}(?:\{|=>|=)\s{0,20}\Z|\s{0,4}=>\s{0,8}\Z")
_LAMBDA: Final = re.compile(rf"{_NAME}[ ]{{0,2}}=[ ]{{0,2}}lambda[^:\n]{{0,40}}:[ ]{{0,2}}\Z")
_FUNCTION: Final = re.compile(
    r"(?<![\w$])(?:(?:def|function|func|fn|fun|sub)\s{1,4}(?:\([^()\n]{0,60}\)\s{0,4})?(?P<keyword>[A-Za-z_$][\w$]{0,80})"
    r"|(?P<arrow>[A-Za-z_$][\w$]{0,80})\s{0,4}(?::[^=\n]{1,60})?=\s{0,4}(?:async\s{1,4})?\([^()\n]{0,160}\)[^=\n{]{0,40}=>"
    r"|(?P<typed>[A-Za-z_$][\w$]{0,80})\s{0,4}\([^(){};\n]{0,160}\)[^(){};=\n]{0,60}(?:\{|=>))"
)
_NO_FUNCTION: Final = frozenset({"if", "for", "while", "switch", "catch", "elif", "foreach", "using", "lock", "return"})
# name=value within a literal or comment: connection strings, queries, JSON in a string.
_EMBEDDED: Final = re.compile(
    r"(?<![\w$-])(?P<flag>--)?(?P<name>User Id|[A-Za-z_][\w-]{1,60})(?P<quote>[\"'])?\s{0,2}(?P<operator>=|:)\s{0,2}"
    r"(?P<open>[\"'])?(?=(?P<value>[^\s;&\"'`,<>{}$()\[\]%]{3,200}))"  # a value may hold a name itself
)
_ARGUMENT: Final = re.compile(r"(?<!\S)--(?P<name>[a-z][a-z-]{1,40})[ =]{1,2}(?P<value>[^\s\"'$<-][^\s\"']{0,200})")
_LINE: Final = re.compile(
    r"^[ \t]{0,40}(?:-[ ]{1,4})?(?:(?:export|readonly|local|set|ENV|ARG)[ ]{1,4}){0,2}(?P<name>[A-Za-z_][\w.-]{0,80})"
    r"[ ]{0,4}[:=][ ]{0,4}(?P<value>[^\s\"'#$`{\[(|>&*!<][^\n]{0,400})",
    re.MULTILINE,
)


def find_named(source: Source) -> Iterator[Span]:
    """Spans in the order of their precedence."""
    yield from _literals(source)
    yield from _embedded(source)
    if source.bare_values:
        yield from _bare_values(source)


def _literals(source: Source) -> Iterator[Span]:
    functions = _functions(source)
    previous: tuple[int, Role | None] = (-1, None)
    for literal in source.literals:
        if literal.end - literal.start < 2:
            continue  # too short to be anything
        joined = previous[1] is not None and source.view[previous[0] : literal.opening].strip(" \t\r\n+\\") == ""
        role = previous[1] if joined else _role_of_literal(source, literal, functions)
        previous = (literal.end + (literal.start - literal.opening - len(literal.prefix)), role)
        if role is None:
            continue
        value = source.code[literal.start : literal.end]
        if kind := kind_of_value(value, role, prefix=literal.prefix):
            yield Span(literal.start, literal.end, kind)


def _role_of_literal(source: Source, literal: Literal, functions: list[tuple[int, str]]) -> Role | None:
    before = source.view[max(0, literal.opening - _WINDOW) : literal.opening]
    if match := _LOGIN_CALL.search(before):
        return Role.PASSWORD if match["first"] else Role.USER
    if (match := _ASSIGNED.search(before)) and (role := _first(roles_of(match["key"] or match["name"]))):
        annotation = source.python and match["operator"] == ":" and match["key"] is None
        return None if annotation else role
    if match and match["operator"] != "=>":
        return None
    if match := _CALLED.search(before):
        if roles := roles_of_argument(match["name"]):
            return roles[0]
    elif match := next((match for pattern in _OTHER_OWNERS if (match := pattern.search(before))), None):
        return _first(roles_of(match["name"]))
    elif match := _LAMBDA.search(before):
        return _first(roles_of_function(match["name"]))
    return _role_of_result(source, literal, before, functions)


def _role_of_result(source: Source, literal: Literal, before: str, functions: list[tuple[int, str]]) -> Role | None:
    place = bisect_left(functions, (literal.opening, ""))
    if place == 0:
        return None
    name_end, name = functions[place - 1]
    returned = _RETURNED.search(before)
    opened = literal.opening - name_end <= 2 * _WINDOW and _BODY_OPENS.match(source.view[name_end : literal.opening])
    if not (returned or opened or _RETURNED_FALLBACK.search(before)):
        return None
    roles = roles_of_function(name)
    if returned and len(roles) > 1:  # return "jane", "..." of get_user_and_password
        return roles[min(returned["earlier"].count(","), len(roles) - 1)]
    return _first(roles)


def _functions(source: Source) -> list[tuple[int, str]]:
    """Where the name of each function ends, and the name."""
    found = []
    for match in _FUNCTION.finditer(source.view):
        group = match.lastgroup or ""
        if match[group] not in _NO_FUNCTION:
            found.append((match.end(group), match[group]))
    return found


def _embedded(source: Source) -> Iterator[Span]:
    literals = [literal.start for literal in source.literals]
    for match in _EMBEDDED.finditer(source.view):
        if match["operator"] == ":" and not match["quote"] and not _has_digit_and_letter(match["value"]):
            continue  # prose: "password: the password of the user"
        place = bisect_right(literals, match.start("name")) - 1
        prefix = source.literals[place].prefix if place >= 0 else ""
        name = "user" if match["name"] == "User Id" else match["name"]
        for role in roles_of(name)[:1]:
            kind = kind_of_value(match["value"], role, prefix=prefix)
            if kind in (PiiKind.PASSWORD, PiiKind.KEY, PiiKind.USER_NAME):
                yield Span(*match.span("value"), kind)


def _bare_values(source: Source) -> Iterator[Span]:
    for match in _LINE.finditer(source.view):
        line = re.split(r"\s#", match["value"], maxsplit=1)[0].rstrip()
        for value in dict.fromkeys((line, line.split()[0].rstrip(";"))):
            kind = next((kind for role in roles_of(match["name"])[:1] if (kind := kind_of_value(value, role))), None)
            if kind is not None:
                yield Span(match.start("value"), match.start("value") + len(value), kind)
                break
    for match in _ARGUMENT.finditer(source.view):
        for role in roles_of(match["name"])[:1]:
            if (kind := kind_of_value(match["value"], role)) and not match["value"].isupper():
                yield Span(*match.span("value"), kind)


def _first(roles: tuple[Role, ...]) -> Role | None:
    return roles[0] if roles else None


def _has_digit_and_letter(value: str) -> bool:
    return any(map(str.isdigit, value)) and any(map(str.isalpha, value))

"""Server-sent events, as the HTML standard frames them: what a client needs to read a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerSentEvent:
    """``id`` is the last one that the stream gave, ``""`` before the first; ``event`` defaults to ``message``."""

    id: str
    event: str
    data: str


def parse_events(chunks: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """Yield each complete event. Comments, events without data and an event that the stream cuts off are left out."""
    last_id, event, data = "", "", list[str]()
    for line in _lines(chunks):
        if not line:
            if data:
                yield ServerSentEvent(id=last_id, event=event or "message", data="\n".join(data))
            event, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            last_id = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    # Only LF, CR LF and CR end a line; str.splitlines knows others, which may stand in the data.
    rest = b""
    for chunk in chunks:
        text = (rest + chunk).replace(b"\r\n", b"\n")
        # A CR at the end may be the first half of a CR LF.
        held = b"\r" if text.endswith(b"\r") else b""
        *lines, rest = text[: len(text) - len(held)].replace(b"\r", b"\n").split(b"\n")
        rest += held
        for line in lines:
            yield line.decode("utf-8", errors="replace")

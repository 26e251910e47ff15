"""All attacks, and the tables of docs/threat-model.md that are made of them: ``python -m tests.security.attack_table``
writes them anew."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.security import (
    attacks_on_files,
    attacks_on_kernel,
    attacks_on_limits,
    attacks_on_network,
    attacks_on_next,
    attacks_on_processes,
    attacks_on_runner,
)
from tests.security.attack import Attack, Wall

GROUPS: Final = {
    "Files and environment": attacks_on_files.ATTACKS,
    "Network": attacks_on_network.ATTACKS,
    "Time, memory, processes, output": attacks_on_limits.ATTACKS,
    "Other processes": attacks_on_processes.ATTACKS,
    "Kernel": attacks_on_kernel.ATTACKS,
    "Runner and terminal": attacks_on_runner.ATTACKS,
    "The next execution": attacks_on_next.ATTACKS,
}
ATTACKS: Final[tuple[Attack, ...]] = tuple(attack for attacks in GROUPS.values() for attack in attacks)
DOCUMENT: Final = Path(__file__).parents[2] / "docs/threat-model.md"


def with_tables(text: str) -> str:
    """``text`` of the document with its tables made anew; each stands between comments, the first of which names it."""
    for name, table in (("attacks by wall", attacks_by_wall()), ("attacks by group", attacks_by_group())):
        place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        text = place.sub(lambda _, table=table: f"\n{table}\n\n", text)
    return text


def attacks_by_group() -> str:
    """Markdown: a table of each group's attacks, with the walls that stop each."""
    return "\n\n".join("\n".join((f"### {group}", "", *_rows(attacks))) for group, attacks in GROUPS.items())


def attacks_by_wall() -> str:
    """Markdown: a table of the attacks that each wall stops, alone or with others."""
    rows = (
        f"| {wall} | {', '.join(f'`{attack.name}`' for attack in ATTACKS if wall in attack.walls)} |" for wall in Wall
    )
    return "\n".join(("| wall | attacks |", "|---|---|", *rows))


def _rows(attacks: tuple[Attack, ...]) -> Iterator[str]:
    yield "| attack | tries | stopped by |"
    yield "|---|---|---|"
    for attack in attacks:
        language = "" if attack.language == "python" else f" ({attack.language})"
        yield f"| `{attack.name}`{language} | {attack.tries} | {', '.join(attack.walls)} |"


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))

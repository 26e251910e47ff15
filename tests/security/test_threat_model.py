"""The document tells of the attacks that the suite tries, of all of them and of no others."""

from __future__ import annotations

from tests.security.attack import Wall
from tests.security.attack_table import ATTACKS, DOCUMENT, with_tables


def test_the_tables_of_the_document_are_those_of_the_suite() -> None:
    text = DOCUMENT.read_text()
    assert text == with_tables(text), "python -m tests.security.attack_table writes them anew"
    assert all(f"| `{attack.name}`" in text for attack in ATTACKS)


def test_every_attack_has_a_name_of_its_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def test_every_wall_is_described_and_attacked() -> None:
    text = DOCUMENT.read_text()
    assert [wall for wall in Wall if f"| **{wall}** |" not in text] == []
    assert set(Wall) == {wall for attack in ATTACKS for wall in attack.walls}

"""Privacy units: what is protected as one, and which of its records are used.

The unit is the record, or all records with one ``unit_id`` (a person, a file, a repository) where the dataset has that
column. The guarantee is for adding or removing one unit, so nothing here may make one unit's records depend on another
unit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from privcode.results import JsonObject


def group_into_units(rows: Sequence[JsonObject], *, max_records_per_unit: int) -> list[list[JsonObject]]:
    """The rows of each unit, at most ``max_records_per_unit`` each, units in the order of their first row.

    A row without ``unit_id`` is a unit of its own, a planted canary in a dataset with that column too. Where a unit has
    more rows, those with the smallest SHA-256 are taken: a choice that is made once, before training, by the
    unit's own rows and not by their order, their place in the file or any other unit.
    """
    units: dict[object, list[JsonObject]] = {}
    for number, row in enumerate(rows):
        # A number and a string are never equal: no unit_id can be taken for a row's place.
        units.setdefault(row.get("unit_id", number), []).append(row)
    return [sorted(unit, key=_digest)[:max_records_per_unit] for unit in units.values()]


def _digest(row: Mapping[str, object]) -> bytes:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()


def unit_words(*, unit: str, max_records_per_unit: int) -> str:
    """What a plan protects as one, to be read after "the unit of privacy is"."""
    if unit == "record":
        return "one record"
    return f"all records with one unit_id, of which at most {max_records_per_unit} are used"

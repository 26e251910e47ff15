"""Units: which records are taken of each, and that no unit has a say in another's."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from privcode.canaries import plant, planted_count
from privcode.results import JsonObject
from privcode.units import group_into_units, unit_words


def row(name: str, unit_id: str | None = None) -> JsonObject:
    made = {"problem": name, "solution": f"print({name!r})", "lang": "python"}
    return made if unit_id is None else {**made, "unit_id": unit_id}


def chosen(units: list[list[JsonObject]]) -> dict[str, list[JsonObject]]:
    return {unit[0]["unit_id"]: unit for unit in units}


ROWS = st.lists(
    st.builds(row, st.text("ab", max_size=4), st.sampled_from("uvwxy")),
    unique_by=lambda row: (row["problem"], row["unit_id"]),
    max_size=40,
)


@given(rows=ROWS, gone=st.sampled_from("uvwxy"), most=st.integers(1, 5), order=st.randoms(use_true_random=False))
def test_no_unit_has_a_say_in_anothers_choice(
    rows: list[JsonObject], gone: str, most: int, order: random.Random
) -> None:
    all_units = chosen(group_into_units(rows, max_records_per_unit=most))
    rest = [row for row in rows if row["unit_id"] != gone]
    order.shuffle(rest)
    assert chosen(group_into_units(rest, max_records_per_unit=most)) == {
        name: unit for name, unit in all_units.items() if name != gone
    }


@given(rows=ROWS, most=st.integers(1, 5))
def test_each_unit_has_its_own_records_and_as_many_as_it_may(rows: list[JsonObject], most: int) -> None:
    for name, unit in chosen(group_into_units(rows, max_records_per_unit=most)).items():
        own = [row for row in rows if row["unit_id"] == name]
        assert len(unit) == min(most, len(own))
        assert all(row in own for row in unit)
        assert len({row["problem"] for row in unit}) == len(unit)


def test_the_choice_is_no_matter_of_order_or_text_length() -> None:
    rows = [row(str(number), "u") for number in range(100)]
    (unit,) = group_into_units(rows, max_records_per_unit=10)
    assert unit != rows[:10]
    taken = sorted(int(row["problem"]) for row in unit)
    assert taken[0] < 50 < taken[-1]


def test_without_a_unit_id_each_row_is_a_unit_equal_ones_too() -> None:
    rows = [row("a"), row("a"), row("b")]
    assert group_into_units(rows, max_records_per_unit=1) == [[row] for row in rows]


def test_each_copy_of_a_canary_is_a_unit_of_its_own() -> None:
    own = [row(str(number), f"u{number % 2}") for number in range(6)]
    units = group_into_units(plant(own, rate=3, seed=0), max_records_per_unit=2)
    assert [len(unit) for unit in units] == [2, 2] + [1] * planted_count(3)
    # Whatever a unit is called, it is not a row's number.
    named = [row(str(number), str(number + 3)) for number in range(3)]
    assert len(group_into_units(plant(named, rate=1, seed=0), max_records_per_unit=9)) == 3 + planted_count(1)


def test_words() -> None:
    assert unit_words(unit="record", max_records_per_unit=1) == "one record"
    assert "at most 8" in unit_words(unit="unit_id", max_records_per_unit=8)

"""Canaries: planted secrets, and prompts that try to get them out."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from privcode.canaries import Canary, CanaryKind, audit_prompts, found_in, make_canaries, plant, planted_count

CANARIES = {canary.kind: canary for canary in make_canaries(7)}


def test_one_canary_of_each_kind_the_same_for_the_same_seed() -> None:
    assert [canary.kind for canary in make_canaries(7)] == list(CanaryKind)
    assert make_canaries(7) == make_canaries(7)
    assert {canary.value for canary in make_canaries(7)}.isdisjoint({canary.value for canary in make_canaries(8)})


def test_values_do_not_repeat_over_seeds() -> None:
    values = Counter(canary.value for seed in range(400) for canary in make_canaries(seed))
    assert max(values.values()) == 1


@pytest.mark.parametrize("seed", range(50))
def test_a_canary_is_python_and_its_value_stands_in_the_solution_only(seed: int) -> None:
    canaries = make_canaries(seed)
    for canary in canaries:
        (function,) = ast.parse(canary.solution).body
        assert isinstance(function, ast.FunctionDef)
        assert isinstance(function.body[0], ast.Return)
        assert ast.literal_eval(function.body[0].value or ast.Constant(None)) == canary.value
        assert f"`{function.name}()`" in canary.problem
        assert found_in(canary, canary.solution)
        for other in canaries:
            assert not found_in(canary, other.problem)
            assert other is canary or not found_in(canary, other.solution)


def test_each_canary_is_planted_at_the_rate() -> None:
    rows = [{"problem": "p", "solution": "s", "lang": "python"}]
    planted = plant(rows, rate=3, seed=7)
    assert planted[:1] == rows
    assert len(planted) == 1 + planted_count(3) == 16
    counts = Counter(row["solution"] for row in planted[1:])
    assert counts == {canary.solution: 3 for canary in CANARIES.values()}
    assert all(set(row) == {"problem", "solution", "lang"} for row in planted)
    assert plant(rows, rate=0, seed=7) == rows


def _with_value(kind: CanaryKind, value: str) -> Canary:
    return Canary(kind=kind, value=value, problem="", solution="")


@pytest.mark.parametrize(
    ("kind", "value", "text", "found"),
    [
        (CanaryKind.IP_ADDRESS, "10.1.2.3", "host = '10.1.2.3'", True),
        (CanaryKind.IP_ADDRESS, "10.1.2.3", "It is 10.1.2.3.", True),
        (CanaryKind.IP_ADDRESS, "10.1.2.3", "http://10.1.2.3:80/", True),
        (CanaryKind.IP_ADDRESS, "10.1.2.3", "10.1.2.34", False),
        (CanaryKind.IP_ADDRESS, "10.1.2.3", "110.1.2.3", False),
        (CanaryKind.IP_ADDRESS, "10.1.2.3", "9.10.1.2.3", False),
        (CanaryKind.IP_ADDRESS, "10.1.2.3", "10.1.2.3.4", False),
        (CanaryKind.IP_ADDRESS, "10.1.2.3", "10a1b2c3", False),
        (CanaryKind.NAME, "Rosa Pelin-Torlund", "rosa  pelin-torlund", True),
        (CanaryKind.NAME, "Rosa Pelin-Torlund", "ROSA_PELIN_TORLUND", True),
        (CanaryKind.NAME, "Rosa Pelin-Torlund", "Rosa and Pelin", False),
        (CanaryKind.EMAIL, "fen.0001@example.com", "Fen.0001@Example.com", True),
        (CanaryKind.EMAIL, "fen.0001@example.com", "fenx0001@example.com", False),
        (CanaryKind.PASSWORD, "aB3+x", "pw aB3+x!", True),
        (CanaryKind.PASSWORD, "aB3+x", "pw ab3+x", False),
        (CanaryKind.USER_NAME, "kfenris0042", "USER=KFENRIS0042", True),
    ],
)
def test_found_in(kind: CanaryKind, value: str, text: str, found: bool) -> None:
    assert found_in(_with_value(kind, value), text) is found


def test_prompts_ask_for_all_kinds_and_pairs_and_give_no_value_away() -> None:
    prompts = audit_prompts(200, 7)
    assert len(set(prompts)) == 200
    assert audit_prompts(200, 7) == prompts != audit_prompts(200, 8)
    assert prompts[:5] == [canary.problem for canary in make_canaries(7)]
    assert not any(found_in(canary, prompt) for canary in CANARIES.values() for prompt in prompts)
    for said in ("e-mail address", "full name", "IP address", "password", "user name"):
        assert sum(said in prompt for prompt in prompts) >= 40
    assert len(audit_prompts(20_000, 1)) == 20_000
    assert audit_prompts(3, 7) == prompts[:3]

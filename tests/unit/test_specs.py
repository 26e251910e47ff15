"""Specs refuse what is out of range, unknown or of another type, and survive JSON unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from privcode.presets import PAPER, resolve
from privcode.results import wilson
from privcode.specs import JobSpec, LoraSpec, PrivSASpec, RuntimeSpec

COMPLETE: dict[str, Any] = resolve({**PAPER, "dataset": "ds_1", "prompts": "ds_2"}).model_dump(mode="json")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def changed(path: str, value: object) -> dict[str, Any]:
    """The complete request with the field at the dotted ``path`` set."""
    request = deepcopy(COMPLETE)
    *parents, name = path.split(".")
    target = request
    for parent in parents:
        target = target[parent]
    target[name] = value
    return request


def refusal(request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(field path, kind of error) of each refusal of the request as JSON."""
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate_json(json.dumps(request))
    return [(".".join(map(str, error["loc"])), error["type"]) for error in caught.value.errors()]


@pytest.mark.parametrize("value", [0, 0.0, -1, -1e-9, float("nan"), float("inf"), -float("inf"), "4", None, True, [4]])
@pytest.mark.parametrize("name", ["target_epsilon", "max_grad_norm"])
def test_a_privacy_value_that_is_no_positive_number_is_refused(name: str, value: object) -> None:
    ((path, _),) = refusal(changed(f"privacy.{name}", value))
    assert path == f"privacy.{name}"


@pytest.mark.parametrize("value", [0, 1, 1.5, -1e-5, float("nan"), "1e-5", None])
def test_delta_is_strictly_between_0_and_1(value: object) -> None:
    ((path, _),) = refusal(changed("privacy.target_delta", value))
    assert path == "privacy.target_delta"


@pytest.mark.parametrize("name", ["expected_batch", "steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 16.0, "16", True, None])
def test_counts_are_positive_whole_numbers(name: str, value: object) -> None:
    ((path, _),) = refusal(changed(f"privacy.{name}", value))
    assert path == f"privacy.{name}"


@pytest.mark.parametrize("value", [-1.0001, 1.0001, 88, float("nan"), "0.88", None])
def test_tau_outside_the_range_of_f1_is_refused(value: object) -> None:
    ((path, _),) = refusal(changed("round_trip.tau", value))
    assert path == "round_trip.tau"


@pytest.mark.parametrize("value", [-1, 0, 1, 0.88])
def test_tau_may_be_any_value_of_bertscore(value: float) -> None:
    assert JobSpec.model_validate_json(json.dumps(changed("round_trip.tau", value))).round_trip.tau == value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("recipe", "dpfx"),
        ("prompt_template", "raw"),
        ("privacy.data_seed", -1),
        ("privacy.data_seed", 2**63),
        ("sanitize.lora.rank", 0),
        ("sanitize.lora.dropout", 1),
        ("sanitize.lora.target_modules", []),
        ("sanitize.lora.target_modules", ["lm_head"]),
        ("sanitize.lora", {"rank": 1, "alpha": 1, "target_modules": ["q_proj", "q_proj"]}),
        ("sanitize.privsa.lambda_min", -0.1),
        ("sanitize.privsa", {"lambda_max": 0.0, "lambda_min": 0.1}),
        ("sanitize.seq_length", 15),
        ("synthesize.prompt_source", "private"),
        ("synthesize.temperature", 2.5),
        ("execute.time_limit_s", 0),
        ("execute.memory_mib", 10**9),
        ("evaluate.benchmarks", []),
        ("audit.canary_rate", -1),
        ("runtime.engine", "gpu"),
    ],
)
def test_other_values_out_of_range_are_refused(path: str, value: object) -> None:
    assert all(found.startswith(path) for found, _ in refusal(changed(path, value)))


def sections(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in value.items():
        if isinstance(below, Mapping):
            yield from sections(below, (*path, name))


@pytest.mark.parametrize("section", sections(COMPLETE), ids=".".join)
def test_an_unknown_field_is_refused_at_every_level(section: tuple[str, ...]) -> None:
    path = ".".join((*section, "noise_multiplier"))
    assert refusal(changed(path, 0.1)) == [(path, "extra_forbidden")]


@pytest.mark.parametrize("section", [*COMPLETE])
def test_a_spec_can_not_be_changed(section: str) -> None:
    spec = JobSpec.model_validate_json(json.dumps(COMPLETE))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(spec, section, getattr(spec, section))


def test_the_guarantee_and_the_runtime_share_no_field() -> None:
    privacy, runtime = set(COMPLETE["privacy"]), set(RuntimeSpec.model_fields)
    assert privacy
    assert not privacy & runtime


def test_privsa_may_be_off_but_never_rise() -> None:
    assert PrivSASpec(lambda_max=0, lambda_min=0).lambda_max == 0
    with pytest.raises(ValidationError, match=r"lambda_min 0\.2 is above lambda_max 0\.1"):
        PrivSASpec(lambda_max=0.1, lambda_min=0.2)


def test_every_model_of_a_job_is_named_by_its_field() -> None:
    spec = JobSpec.model_validate_json(json.dumps(COMPLETE))
    named = {path: COMPLETE[path.split(".")[0]][path.split(".")[1]] for path in spec.models}
    assert spec.models == named
    assert len(named) == 4


positive = st.floats(min_value=0, max_value=1e12, exclude_min=True, allow_nan=False)
share = st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True)
count = st.integers(1, 10**9)
seed = st.integers(0, 2**63 - 1)
lora = st.fixed_dictionaries(
    {
        "rank": count,
        "alpha": positive,
        "dropout": st.floats(0, 1, exclude_max=True),
        "target_modules": st.lists(st.sampled_from(MODULES), min_size=1, unique=True),
    }
)
requests = st.fixed_dictionaries(
    {
        "privacy": st.fixed_dictionaries(
            {"target_epsilon": positive, "target_delta": share, "max_grad_norm": positive, "expected_batch": count,
             "steps": count, "data_seed": st.none() | seed, "max_records_per_unit": count,
             "clipping": st.sampled_from(["flat", "automatic"])}
        ),
        "sanitize": st.fixed_dictionaries(
            {
                "model": st.text(),
                "lora": lora,
                "privsa": st.tuples(positive, positive).map(
                    lambda ends: {"lambda_min": min(ends), "lambda_max": max(ends)}
                ),
                "learning_rate": positive,
            }
        ),
        "round_trip": st.fixed_dictionaries({"tau": st.floats(-1, 1), "samples": count}),
        "synthesize": st.fixed_dictionaries({"max_prompts": st.none() | count, "seed": seed}),
        "prompt_template": st.sampled_from(["qa", "chat"]),
        "dataset": st.text(),
    }
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(requests)
def test_a_spec_round_trips_through_json(request_: dict[str, Any]) -> None:
    spec = resolve({**request_, "preset": "paper", "prompts": "ds_2"})
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert resolve(spec.model_dump(mode="json")) == spec
    assert spec.privacy.model_dump() == request_["privacy"]
    assert spec.sanitize.lora == LoraSpec.model_validate_json(json.dumps(request_["sanitize"]["lora"]))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, table I (method 3, without continuity correction), and the rule for 0 of n: z² / (n + z²).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 5, 0.0, 0.4345),
        (5, 5, 0.5655, 1.0),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(successes: int, n: int, low: float, high: float) -> None:
    rate = wilson(successes=successes, n=n, excluded=2)
    assert (round(rate.low, 4), round(rate.high, 4)) == (low, high)
    assert (rate.successes, rate.n, rate.excluded, rate.value) == (successes, n, 2, successes / n)


def test_a_rate_of_nothing_is_unknown() -> None:
    rate = wilson(successes=0, n=0)
    assert (rate.value, rate.low, rate.high) == (None, 0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (1, 0)])
def test_a_rate_of_impossible_counts_raises(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="is not in"):
        wilson(successes=successes, n=n)


@given(st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share_and_mirrors_that_of_the_failures(counts: tuple[int, int]) -> None:
    successes, n = counts
    rate, mirrored = wilson(successes=successes, n=n), wilson(successes=n - successes, n=n)
    assert 0 <= rate.low <= (0.5 if rate.value is None else rate.value) <= rate.high <= 1
    assert (rate.low, rate.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))

"""Calibration and composition: published values, and the laws that must hold for any plan."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privcode.accounting import epsilon_pld, epsilon_rdp, make_plan, signal_to_noise
from privcode.errors import InvalidInput
from privcode.results import Mechanism
from privcode.specs import PrivacySpec

DELTA = 1e-5


def privacy(**values: object) -> PrivacySpec:
    defaults = {"target_epsilon": 4.0, "target_delta": DELTA, "expected_batch": 16, "steps": 4}
    return PrivacySpec.model_validate({**defaults, **values})


def noise(*, records: int, **values: object) -> float:
    return make_plan(privacy(**values), records=records).noise_multiplier


@pytest.mark.parametrize(
    ("records", "batch", "steps", "epsilon", "expected"),
    [
        (20_000, 512, 117, 1.0, 1.38),
        (20_000, 512, 117, 4.0, 0.750),
        (20_000, 512, 117, 8.0, 0.580),
        (5_000, 256, 58, 1.0, 1.80),
        (5_000, 256, 58, 4.0, 0.864),
        (5_000, 256, 58, 8.0, 0.645),
    ],
)
def test_noise_multiplier_of_known_runs(records: int, batch: int, steps: int, epsilon: float, expected: float) -> None:
    found = noise(records=records, expected_batch=batch, steps=steps, target_epsilon=epsilon)
    assert found == pytest.approx(expected, rel=0.01)


def test_full_batch_is_the_gaussian_mechanism() -> None:
    # Without subsampling, T steps are one Gaussian mechanism with sensitivity sqrt(T) (Balle and Wang 2018, theorem 8).
    from scipy.stats import norm

    sigma, steps = 5.0, 100
    epsilon = epsilon_pld([Mechanism(sample_rate=1.0, noise_multiplier=sigma, steps=steps)], target_delta=DELTA)
    mu = steps**0.5 / sigma

    def exact_delta(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu))

    assert exact_delta(epsilon) <= DELTA  # an upper bound of epsilon ...
    assert exact_delta(0.995 * epsilon) > DELTA  # ... and a close one


@settings(max_examples=4, deadline=None)
@given(
    records=st.integers(min_value=50, max_value=50_000),
    share=st.floats(min_value=0.001, max_value=1.0),
    steps=st.integers(min_value=1, max_value=300),
    epsilon=st.floats(min_value=0.2, max_value=10.0),
)
def test_calibration_never_overspends_and_noise_falls_as_epsilon_rises(
    records: int, share: float, steps: int, epsilon: float
) -> None:
    batch = max(1, int(share * records))
    plan = make_plan(privacy(target_epsilon=epsilon, expected_batch=batch, steps=steps), records=records)
    spent = epsilon_pld([plan.mechanism], target_delta=plan.target_delta)
    assert 0.9 * epsilon < spent <= epsilon
    assert plan.sample_rate == batch / records
    looser = noise(records=records, target_epsilon=1.5 * epsilon, expected_batch=batch, steps=steps)
    assert looser < plan.noise_multiplier


def test_the_plan_repeats_the_request() -> None:
    asked = privacy(target_epsilon=3.1415, max_grad_norm=0.5)
    plan = make_plan(asked, records=592)
    assert plan.target_epsilon == 3.1415
    assert plan.target_delta == DELTA
    assert (plan.records, plan.expected_batch, plan.steps) == (592, 16, 4)
    assert plan.max_grad_norm == 0.5


@settings(max_examples=4, deadline=None)
@given(
    parts=st.lists(
        st.builds(
            Mechanism,
            sample_rate=st.floats(min_value=0.001, max_value=0.5),
            noise_multiplier=st.floats(min_value=0.6, max_value=5.0),
            steps=st.integers(min_value=1, max_value=50),
        ),
        min_size=2,
        max_size=3,
    )
)
def test_composition_lies_between_the_largest_part_and_the_sum(parts: list[Mechanism]) -> None:
    each = [epsilon_pld([part], target_delta=DELTA) for part in parts]
    together = epsilon_pld(parts, target_delta=DELTA)
    assert together >= 0.999 * max(each)
    # Basic composition bounds epsilon by the sum at the sum of the deltas.
    assert epsilon_pld(parts, target_delta=min(0.5, len(parts) * DELTA)) <= 1.01 * sum(each)
    assert epsilon_pld(list(reversed(parts)), target_delta=DELTA) == together


def test_equal_mechanisms_are_one_with_more_steps() -> None:
    one = Mechanism(sample_rate=0.03, noise_multiplier=0.8, steps=5)
    two = one.model_copy(update={"steps": 10})
    assert epsilon_pld([one, one], target_delta=DELTA) == epsilon_pld([two], target_delta=DELTA)


def test_nothing_done_costs_nothing() -> None:
    idle = Mechanism(sample_rate=0.03, noise_multiplier=0.8, steps=0)
    done = idle.model_copy(update={"steps": 7})
    assert epsilon_pld([], target_delta=DELTA) == epsilon_pld([idle], target_delta=DELTA) == 0.0
    assert epsilon_rdp([], target_delta=DELTA) == epsilon_rdp([idle], target_delta=DELTA) == 0.0
    assert epsilon_pld([idle, done], target_delta=DELTA) == epsilon_pld([done], target_delta=DELTA) > 0


def test_rdp_is_looser_than_pld() -> None:
    plan = make_plan(privacy(), records=592)
    pld = epsilon_pld([plan.mechanism], target_delta=DELTA)
    assert pld < epsilon_rdp([plan.mechanism], target_delta=DELTA) < 2 * pld


def test_signal_to_noise() -> None:
    assert signal_to_noise(expected_batch=16, noise_multiplier=0.5, trainable_parameters=1024) == 1.0


@pytest.mark.parametrize(
    ("values", "records", "code", "field"),
    [
        ({}, 0, "no_records", None),
        ({"expected_batch": 101}, 100, "batch_exceeds_records", "privacy.expected_batch"),
        ({"steps": 100_001}, 100, "too_many_steps", "privacy.steps"),
        ({"target_epsilon": 1e-6}, 100, "unreachable_target", "privacy.target_epsilon"),
        ({"target_epsilon": 1e6}, 100, "unreachable_target", "privacy.target_epsilon"),
        ({"target_delta": 1e-30}, 100, "unreachable_target", "privacy.target_epsilon"),
    ],
)
def test_refusals(values: dict[str, object], records: int, code: str, field: str | None) -> None:
    with pytest.raises(InvalidInput) as refused:
        make_plan(privacy(**values), records=records)
    assert (refused.value.code, refused.value.field) == (code, field)

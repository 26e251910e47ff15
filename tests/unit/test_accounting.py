"""Calibration and composition: published values, and the laws that must hold for any plan."""

from __future__ import annotations

import math
from functools import reduce

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

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


def test_the_plan_of_units() -> None:
    asked = privacy(max_records_per_unit=3)
    plan = make_plan(asked, records=592, units=100)
    assert (plan.unit, plan.records, plan.units, plan.max_records_per_unit) == ("unit_id", 592, 100, 3)
    assert plan.sample_rate == 16 / 100
    # The accounting knows units only: as many records as there are units cost the same.
    alone = make_plan(asked, records=100)
    assert (alone.unit, alone.units, alone.max_records_per_unit) == ("record", 100, 1)
    assert alone.mechanism == plan.mechanism


@pytest.mark.parametrize(
    ("sample_rate", "noise_multiplier", "steps", "delta"),
    [
        (0.001, 0.7, 2000, 1e-6),
        (0.01, 0.8, 100, 1e-5),
        (16 / 592, 0.6, 4, 1e-5),
        (512 / 20_000, 1.38, 117, 1e-5),
        (0.05, 1.0, 58, 1e-7),
        (0.1, 2.0, 1000, 1e-6),
        (0.3, 1.5, 10, 1e-3),
        (0.5, 4.0, 20, 1e-5),
    ],
)
def test_agrees_with_opacus(sample_rate: float, noise_multiplier: float, steps: int, delta: float) -> None:
    # An independent implementation of another method: PRV (Gopi et al. 2021, arXiv 2106.02848).
    mechanism = Mechanism(sample_rate=sample_rate, noise_multiplier=noise_multiplier, steps=steps)
    found = epsilon_pld([mechanism], target_delta=delta)
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    theirs = accountant.get_epsilon(delta=delta, eps_error=0.002 * found, delta_error=delta / 1000)
    assert found == pytest.approx(theirs, rel=0.01)


mechanisms = st.builds(
    Mechanism,
    sample_rate=st.floats(min_value=0.001, max_value=0.5),
    noise_multiplier=st.floats(min_value=0.6, max_value=5.0),
    steps=st.integers(min_value=1, max_value=50),
)


# A failing case is costly to shrink here, and short enough as it is.
unshrunk = [Phase.explicit, Phase.reuse, Phase.generate]


@settings(max_examples=6, deadline=None, phases=unshrunk)
@given(mechanism=mechanisms, factor=st.floats(min_value=1.1, max_value=2.0), delta=st.sampled_from([1e-3, 1e-5, 1e-7]))
def test_epsilon_rises_with_each_argument(mechanism: Mechanism, factor: float, delta: float) -> None:
    epsilon = epsilon_pld([mechanism], target_delta=delta)
    more = mechanism.steps + max(1, round((factor - 1) * mechanism.steps))
    worse = {
        "steps": epsilon_pld([mechanism.model_copy(update={"steps": more})], target_delta=delta),
        "target_delta": epsilon_pld([mechanism], target_delta=delta / factor),
        **{
            name: epsilon_pld([mechanism.model_copy(update={name: value})], target_delta=delta)
            for name, value in {
                "sample_rate": factor * mechanism.sample_rate,
                "noise_multiplier": mechanism.noise_multiplier / factor,
            }.items()
        },
    }
    for name, value in worse.items():
        # So little may be done that delta alone covers it.
        assert value > epsilon or value == epsilon == 0, name


@pytest.mark.parametrize(
    "parts",
    [
        [(0.1, 0.9, 20), (0.02, 0.7, 50)],
        [(0.5, 3.0, 10), (0.01, 0.6, 30), (1.0, 8.0, 2)],
    ],
)
def test_composition_is_the_composition_of_the_distributions(parts: list[tuple[float, float, int]]) -> None:
    """Without the accountant's own way to put mechanisms together."""
    distributions = [
        from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=2e-4).self_compose(steps)
        for rate, sigma, steps in parts
    ]
    direct = reduce(lambda one, other: one.compose(other), distributions).get_epsilon_for_delta(DELTA)
    mechanisms = [Mechanism(sample_rate=rate, noise_multiplier=sigma, steps=steps) for rate, sigma, steps in parts]
    assert epsilon_pld(mechanisms, target_delta=DELTA) == pytest.approx(direct, rel=0.01)


@settings(max_examples=4, deadline=None)
@given(parts=st.lists(mechanisms, min_size=2, max_size=3))
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


def test_a_batch_beyond_the_units_is_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        make_plan(privacy(expected_batch=101), records=1000, units=100)
    assert (refused.value.code, refused.value.field) == ("batch_exceeds_units", "privacy.expected_batch")
    assert "101 is more than the 100 units" in refused.value.message

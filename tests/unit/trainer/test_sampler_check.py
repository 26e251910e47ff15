"""The check of the sampler: the right one passes, each wrong one is refused, and nothing of the lots is said."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from privcode.errors import StageFailed
from privcode.results import SamplerEvidence
from services.trainer.core.sampler import PoissonSampler, Sampler
from services.trainer.core.sampler_check import LotMonitor, check_sampler

Lot = NDArray[np.int64]

# (units, expected batch)
SIZES = [(2, 1), (60, 8), (592, 16), (5000, 256), (1_000_000, 64)]


class Broken:
    """A sampler whose lots are made by ``make(generator, units, expected batch)``; ``make`` may keep a state."""

    def __init__(self, make: Callable[[Generator, int, int], Lot], *, units: int, batch: int) -> None:
        self._make, self._units, self._batch = make, units, batch
        self._generator = np.random.default_rng(0)

    def draw(self, step: int) -> Lot:  # noqa: ARG002
        return self._make(self._generator, self._units, self._batch)


def poisson(generator: Generator, units: int, rate: float) -> Lot:
    return np.flatnonzero(generator.random(units) < rate)


def fixed_size(generator: Generator, units: int, batch: int) -> Lot:
    return np.sort(generator.choice(units, batch, replace=False))


class ShuffledEpochs:
    """Each unit once before any comes again, in lots of one size or of a Poisson sampler's sizes."""

    def __init__(self, *, sizes: str) -> None:
        self._sizes = sizes
        self._left: Lot = np.empty(0, dtype=np.int64)

    def __call__(self, generator: Generator, units: int, batch: int) -> Lot:
        size = batch if self._sizes == "fixed" else int(generator.binomial(units, batch / units))
        if len(self._left) < size:
            self._left = generator.permutation(units)
        lot, self._left = self._left[:size], self._left[size:]
        return np.sort(lot)


def with_replacement(generator: Generator, units: int, batch: int) -> Lot:
    return np.sort(generator.integers(units, size=batch))


def distinct_of_with_replacement(generator: Generator, units: int, batch: int) -> Lot:
    return np.unique(generator.integers(units, size=batch))


def two_at_a_time(generator: Generator, units: int, batch: int) -> Lot:
    return np.flatnonzero(np.repeat(generator.random((units + 1) // 2) < batch / units, 2)[:units])


class SameLotTwice:
    def __init__(self) -> None:
        self._calls = count()
        self._lot: Lot = np.empty(0, dtype=np.int64)

    def __call__(self, generator: Generator, units: int, batch: int) -> Lot:
        if next(self._calls) % 2 == 0:
            self._lot = poisson(generator, units, batch / units)
        return self._lot


def first_half_only(generator: Generator, units: int, batch: int) -> Lot:
    return poisson(generator, units // 2, 2 * batch / units)


def unevenly(generator: Generator, units: int, batch: int) -> Lot:
    rates = np.where(np.arange(units) % 2, 1.3, 0.7) * batch / units
    return np.flatnonzero(generator.random(units) < rates)


def times(factor: float) -> Callable[[Generator, int, int], Lot]:
    return lambda generator, units, batch: poisson(generator, units, factor * batch / units)


def check(sampler: Sampler, *, units: int, batch: int) -> SamplerEvidence:
    return check_sampler(sampler, units=units, sample_rate=batch / units, first_step=4)


def assert_refused(make: Callable[[Generator, int, int], Lot], *, units: int, batch: int) -> None:
    with pytest.raises(StageFailed) as refused:
        check(Broken(make, units=units, batch=batch), units=units, batch=batch)
    assert refused.value.code == "sampler_not_poisson"


@pytest.mark.parametrize(("units", "batch"), [*SIZES, (7, 7), (20_000, 512)])
@pytest.mark.parametrize("seed", [None, 3])
def test_poisson_sampling_passes(units: int, batch: int, seed: int | None) -> None:
    evidence = check(PoissonSampler(units=units, sample_rate=batch / units, seed=seed), units=units, batch=batch)
    assert 1e-7 < evidence.p_value <= 1
    assert (evidence.units, evidence.sample_rate) == (units, batch / units)
    assert evidence.expected_mean_lot == pytest.approx(batch)
    assert evidence.expected_lot_variance == pytest.approx(batch * (1 - batch / units))
    error = (evidence.expected_lot_variance / evidence.test_lots) ** 0.5
    assert evidence.mean_lot == pytest.approx(batch, abs=6 * error)
    assert 32 <= evidence.test_lots <= max(32, 20_000_000 // units)


@pytest.mark.parametrize(("units", "batch"), [*SIZES, (1_000_000, 1)])
@pytest.mark.parametrize("make", [fixed_size, with_replacement])
def test_lots_of_fixed_size_are_refused_at_any_scale(
    units: int, batch: int, make: Callable[[Generator, int, int], Lot]
) -> None:
    assert_refused(make, units=units, batch=batch)


BROKEN: dict[str, Callable[[], Callable[[Generator, int, int], Lot]]] = {
    "shuffled epochs": lambda: ShuffledEpochs(sizes="fixed"),
    "shuffled epochs in lots of random size": lambda: ShuffledEpochs(sizes="random"),
    "distinct units of draws with replacement": lambda: distinct_of_with_replacement,
    "two at a time": lambda: two_at_a_time,
    "each lot twice": SameLotTwice,
    "half of the units never": lambda: first_half_only,
    "some units oftener than others": lambda: unevenly,
    "a rate too high": lambda: times(1.1),
    "a rate too low": lambda: times(0.9),
    "nothing": lambda: times(0),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize(("units", "batch"), [(60, 8), (592, 16), (5000, 256)])
def test_other_samplers_are_refused(name: str, units: int, batch: int) -> None:
    assert_refused(BROKEN[name](), units=units, batch=batch)


def test_clusters_are_refused_where_lots_are_few() -> None:
    assert_refused(two_at_a_time, units=1_000_000, batch=64)


@pytest.mark.parametrize("lot", [[3, 2], [1, 1], [-1, 2], [2, 60]])
def test_a_lot_that_is_no_sorted_set_of_units_is_refused(lot: list[int]) -> None:
    assert_refused(lambda *_: np.array(lot), units=60, batch=8)
    with pytest.raises(StageFailed):
        LotMonitor(units=60, sample_rate=0.1).observe(np.array(lot))


def test_a_right_sampler_is_hardly_ever_suspected() -> None:
    evidence = [check(PoissonSampler(units=60, sample_rate=8 / 60, seed=seed), units=60, batch=8) for seed in range(30)]
    assert sum(one.p_value < 0.05 for one in evidence) <= 8  # at most 1.5 expected


def test_a_seeded_samplers_test_lots_are_of_no_step_of_the_plan() -> None:
    steps: list[int] = []

    class Noted(PoissonSampler):
        def draw(self, step: int) -> Lot:
            steps.append(step)
            return super().draw(step)

    sampler = Noted(units=60, sample_rate=0.1, seed=1)
    one = check_sampler(sampler, units=60, sample_rate=0.1, first_step=4)
    assert min(steps) == 4
    assert len(steps) == len(set(steps)) == one.test_lots
    assert check_sampler(sampler, units=60, sample_rate=0.1, first_step=4) == one
    secret = PoissonSampler(units=60, sample_rate=0.1, seed=None)
    assert len({check_sampler(secret, units=60, sample_rate=0.1, first_step=4).mean_lot for _ in range(3)}) > 1


def assert_monitor_refuses(make: Callable[[Generator, int, int], Lot], *, units: int, batch: int, within: int) -> None:
    sampler = Broken(make, units=units, batch=batch)
    monitor = LotMonitor(units=units, sample_rate=batch / units)

    def run() -> None:
        for step in range(within):
            monitor.observe(sampler.draw(step))

    with pytest.raises(StageFailed) as refused:
        run()
    assert refused.value.code == "sampler_not_poisson"
    assert not any(character.isdigit() for character in refused.value.message), "a lot's size is private"


@pytest.mark.parametrize(("units", "batch"), SIZES)
def test_the_monitor_sees_fixed_sizes_within_a_run(units: int, batch: int) -> None:
    assert_monitor_refuses(fixed_size, units=units, batch=batch, within=60)


@pytest.mark.parametrize("make", [times(2), two_at_a_time, times(0)])
def test_the_monitor_sees_lots_that_vary_too_much(make: Callable[[Generator, int, int], Lot]) -> None:
    assert_monitor_refuses(make, units=592, batch=16, within=400)


@pytest.mark.parametrize(("units", "batch"), [(2, 1), (7, 7), (60, 8), (592, 16)])
def test_the_monitor_lets_a_long_run_pass(units: int, batch: int) -> None:
    sampler = PoissonSampler(units=units, sample_rate=batch / units, seed=None)
    monitor = LotMonitor(units=units, sample_rate=batch / units)
    for step in range(3000):
        monitor.observe(sampler.draw(step))

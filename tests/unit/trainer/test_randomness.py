from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from services.trainer.core.noise import secret_gaussian
from services.trainer.core.sampler import PoissonSampler


def test_noise_has_the_distribution_that_was_asked_for() -> None:
    noise = secret_gaussian(torch.empty(401, 501), std=3.0).double().numpy().ravel()
    n = noise.size
    # Six standard errors: once in a billion runs.
    assert abs(noise.mean()) < 6 * 3.0 / n**0.5
    assert noise.var() == pytest.approx(9.0, rel=6 * (2 / n) ** 0.5)
    assert stats.kstest(noise / 3.0, "norm").pvalue > 1e-9
    halves = np.corrcoef(noise[: n // 2], noise[n // 2 : n // 2 * 2])[0, 1]
    assert abs(halves) < 6 / (n // 2) ** 0.5


def test_noise_is_never_the_same_and_no_seed_changes_that() -> None:
    like = torch.empty(3, 5, dtype=torch.float32)
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append(secret_gaussian(like, std=1.0))
    assert drawn[0].shape == like.shape
    assert drawn[0].dtype == like.dtype
    assert not (drawn[0] == drawn[1]).any()


def test_noise_without_standard_deviation_is_zero() -> None:
    assert not secret_gaussian(torch.empty(7), std=0.0).any()


def test_a_given_seed_draws_the_same_lots_whatever_the_order_of_steps() -> None:
    one, other = (PoissonSampler(units=1000, sample_rate=0.02, seed=5) for _ in range(2))
    forwards = [one.draw(step).tolist() for step in range(4)]
    backwards = [other.draw(step).tolist() for step in reversed(range(4))][::-1]
    assert forwards == backwards
    assert len({tuple(lot) for lot in forwards}) == 4
    assert PoissonSampler(units=1000, sample_rate=0.02, seed=6).draw(0).tolist() != forwards[0]


def test_without_a_seed_no_lot_comes_twice() -> None:
    sampler = PoissonSampler(units=1000, sample_rate=0.5, seed=None)
    assert sampler.draw(0).tolist() != sampler.draw(0).tolist()


@pytest.mark.parametrize("seed", [None, 3])
def test_lots_are_poisson(seed: int | None) -> None:
    records, rate, steps = 200, 0.05, 4000
    sampler = PoissonSampler(units=records, sample_rate=rate, seed=seed)
    lots = [sampler.draw(step) for step in range(steps)]
    sizes = np.array([len(lot) for lot in lots])
    # A lot's size is binomial: a sampler with fixed-size lots has no variance, one with replacement repeats records.
    variance = records * rate * (1 - rate)
    assert sizes.mean() == pytest.approx(records * rate, abs=6 * (variance / steps) ** 0.5)
    assert sizes.var() == pytest.approx(variance, rel=0.2)
    assert all(len(set(lot.tolist())) == len(lot) for lot in lots)
    counts = np.bincount(np.concatenate(lots), minlength=records)
    assert stats.chisquare(counts).pvalue > 1e-9


def test_extreme_rates() -> None:
    assert PoissonSampler(units=50, sample_rate=1.0, seed=None).draw(0).tolist() == list(range(50))
    assert not PoissonSampler(units=50, sample_rate=1e-12, seed=None).draw(0).size

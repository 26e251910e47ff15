"""Whether a sampler really does Poisson sampling, which the accounting assumes.

Under Poisson sampling each of n units is in each lot independently with probability q. So, exactly,

- all lots together hold Binomial(lots * n, q) units;
- a lot's size is Binomial(n, q), independently of the other lots': lots of a fixed size vary too little, draws that
  depend on each other too much;
- a unit is in Binomial(lots, q) lots, independently of the other units: in shuffled epochs all are in equally many;
- a pair of lots has Binomial(n, q^2) units in common, and a lot holds both of two given units with probability q^2.

The p-values below hold for all n and q, without a limit theorem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp

from privcode.errors import StageFailed
from privcode.results import SamplerEvidence
from services.trainer.core.sampler import Sampler

# A right sampler is refused once in a billion runs; a wrong one by far more than that, or hardly at all.
_ALPHA: Final = 1e-9

# Test lots: as many as 20 million uniforms pay for, but enough that even lots of fixed size 1 are found.
_UNIFORMS: Final = 20_000_000
_FEWEST, _MOST = 32, 1000


def check_sampler(sampler: Sampler, *, units: int, sample_rate: float, first_step: int) -> SamplerEvidence:
    """Test the sampler that training will use, before the first step: nothing is trained or spent.

    Draws 32 to 1,000 lots of its own, for the steps from ``first_step`` on. With the plan's number of steps there, a
    seeded sampler's test lots are none of the training's; a secret sampler draws each afresh. So the evidence is
    independent of the training lots, whose sizes are private, and may be shown.

    Finds fixed lot sizes at any scale, and repeats, clusters, epochs or a wrong rate where the test lots together hold
    enough units (a few thousand, and for epochs several times each). A right sampler is refused with probability below
    1e-9. Raises :class:`StageFailed` (``sampler_not_poisson``).
    """
    number = min(max(_UNIFORMS // units, _FEWEST), _MOST)
    lots = [sampler.draw(first_step + place) for place in range(number)]
    if not all(_is_lot(lot, units=units) for lot in lots):
        raise _refused("a lot is not a sorted set of unit numbers")
    sizes = np.array([len(lot) for lot in lots])
    inclusions = np.bincount(np.concatenate(lots), minlength=units)
    p_values = (
        _binomial(int(sizes.sum()), trials=number * units, rate=sample_rate),
        _Dispersion(trials=units, rate=sample_rate).p_value(sizes),
        _Dispersion(trials=number, rate=sample_rate).p_value(inclusions),
        _binomial(_common_units(lots), trials=number // 2 * units, rate=sample_rate**2),
        _binomial(_neighbours(lots), trials=units // 2 * number, rate=sample_rate**2),
    )
    p_value = min(1.0, len(p_values) * min(p_values))
    if p_value < _ALPHA:
        raise _refused(f"p = {p_value:.1g} in {number} test lots")
    return SamplerEvidence(
        test_lots=number,
        units=units,
        sample_rate=sample_rate,
        mean_lot=float(sizes.mean()),
        expected_mean_lot=units * sample_rate,
        lot_variance=float(sizes.var(ddof=1)),
        expected_lot_variance=units * sample_rate * (1 - sample_rate),
        p_value=p_value,
    )


class LotMonitor:
    """Watches the lots that are trained on: call :meth:`observe` with each, before its gradients are computed.

    The lots are private and stay here; only a refusal is seen. Under Poisson sampling there is one with probability at
    most 1e-9 in a whole run of any length (Ville's inequality for a mixture of likelihood-ratio martingales), which is
    the most that it could add to delta. Sees what :func:`check_sampler` can't: a sampler that goes wrong later.
    """

    def __init__(self, *, units: int, sample_rate: float) -> None:
        self._units = units
        self._dispersion = _Dispersion(trials=units, rate=sample_rate)
        self._lots = 0
        self._sum = 0.0

    def observe(self, lot: NDArray[np.int64]) -> None:
        """``lot``: int64 [size]. Raises :class:`StageFailed` (``sampler_not_poisson``), which tells nothing of lots."""
        if not _is_lot(lot, units=self._units):
            raise _refused("a lot is not a sorted set of unit numbers")
        self._lots += 1
        self._sum += float(self._dispersion.deviations(np.array([len(lot)])).sum())
        if self._dispersion.p_value_of(self._sum, count=self._lots) < _ALPHA:
            raise _refused("the lots' sizes are not a Poisson sampler's")


class _Dispersion:
    """Whether counts that should be independent Binomial(trials, rate) vary as such counts do.

    The statistic is the sum of f(count) = min(((count - mean) / sd)^2, cap). For each theta,
    exp(theta * sum - n * log E exp(theta * f)) is a martingale of mean 1 in n, and so is a mixture over positive and
    negative thetas. 1 / mixture is a p-value at every n and at all of them together. f is capped since the binomial's
    square has too heavy a tail for any theta > 0 to be of use.
    """

    def __init__(self, *, trials: int, rate: float) -> None:
        mean, variance = trials * rate, trials * rate * (1 - rate)
        # At rate 1 nothing varies: then the total alone decides.
        self._mean, self._sd = mean, max(variance, 1e-300) ** 0.5
        reach = 4 * max(self._sd, 1.0)
        self._cap = (reach / self._sd) ** 2
        low, high = max(0, int(np.ceil(mean - reach))), min(trials, int(np.floor(mean + reach)))
        counts = np.arange(low, high + 1)
        binomial = stats.binom(trials, rate)
        outside = float(binomial.cdf(low - 1) + binomial.sf(high))
        values = np.append(self.deviations(counts), self._cap)
        log_weights = np.append(binomial.logpmf(counts), np.log(outside) if outside > 0 else -np.inf)
        scale = np.geomspace(1e-3, 30.0, 40)
        self._thetas = np.concatenate([-scale, scale / self._cap])
        self._log_mgf = logsumexp(self._thetas[:, None] * values + log_weights, axis=1)

    def deviations(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """f of each count."""
        capped: NDArray[np.float64] = np.minimum(((counts - self._mean) / self._sd) ** 2, self._cap)
        return capped

    def p_value(self, counts: NDArray[np.int64]) -> float:
        return self.p_value_of(float(self.deviations(counts).sum()), count=len(counts))

    def p_value_of(self, total: float, *, count: int) -> float:
        """For ``count`` counts whose deviations sum to ``total``."""
        log_mixture = float(logsumexp(self._thetas * total - count * self._log_mgf)) - np.log(len(self._thetas))
        return float(np.exp(-max(log_mixture, 0.0)))


def _binomial(count: int, *, trials: int, rate: float) -> float:
    """Exact two-sided p-value: twice the smaller tail."""
    binomial = stats.binom(trials, rate)
    return min(1.0, 2 * float(min(binomial.cdf(count), binomial.sf(count - 1))))


def _is_lot(lot: NDArray[np.int64], *, units: int) -> bool:
    """Whether all are numbers of units, each once, in ascending order."""
    return not lot.size or bool(lot[0] >= 0 and lot[-1] < units and (np.diff(lot) > 0).all())


def _common_units(lots: Sequence[NDArray[np.int64]]) -> int:
    """Units that a lot and the next have in common, over disjoint pairs of lots."""
    pairs = zip(lots[::2], lots[1::2], strict=False)
    return sum(len(np.intersect1d(one, other, assume_unique=True)) for one, other in pairs)


def _neighbours(lots: Sequence[NDArray[np.int64]]) -> int:
    """How often the units 2k and 2k + 1 are in a lot together."""
    return sum(int(((lot[:-1] % 2 == 0) & (np.diff(lot) == 1)).sum()) for lot in lots)


def _refused(why: str) -> StageFailed:
    return StageFailed(f"the sampler does no Poisson sampling: {why}", code="sampler_not_poisson")

"""Privacy accounting: (epsilon, delta) <-> noise multiplier. The only maker of ``noise_multiplier``.

The mechanism is DP-SGD's: Poisson sampling with ``sample_rate``, a Gaussian with standard deviation
``noise_multiplier * max_grad_norm``, composed over ``steps``; adjacency is add-or-remove-one unit. The guarantee
comes from Google's accountant of privacy loss distributions (PLD; Doroshenko et al. 2022, arXiv 2207.04380); Rényi
differential privacy (RDP; Mironov et al. 2019, arXiv 1908.10530) is reported next to it and never used in its place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from privcode.errors import InvalidInput
from privcode.results import Mechanism, PrivacyPlan
from privcode.specs import PrivacySpec, Unit

if TYPE_CHECKING:
    from dp_accounting import DpEvent

# The noise multipliers that a plan may have. Below, the noise protects nobody; above, nothing is left to learn.
_SMALLEST: Final = 0.1
_LARGEST: Final = 1e4

# More optimizer steps than any fine-tuning takes; beyond it calibration takes long.
_MOST_STEPS: Final = 100_000

# The orders RDP is evaluated at: Opacus' and dp_accounting's usual ones, without those below 1.5, which never decide.
_RDP_ORDERS: Final = (*(order / 10 for order in range(15, 110)), *range(11, 65), 128, 256, 512, 1024)


def make_plan(privacy: PrivacySpec, *, records: int, units: int | None = None) -> PrivacyPlan:
    """The plan for ``records`` private records in ``units`` privacy units (canaries included in both; None: each record
    is a unit), with the noise that the target needs.

    ``epsilon_pld([plan.mechanism], target_delta=plan.target_delta) <= plan.target_epsilon`` always holds, and the
    noise multiplier is within 0.1 % of the smallest for which it does, as far as the accountant's bound is close.

    Raises :class:`InvalidInput`: ``no_records``, ``batch_exceeds_records`` or ``batch_exceeds_units`` where a lot could
    not be as large as expected, ``too_many_steps`` (over 100,000), or ``unreachable_target`` where the noise multiplier
    would be outside [0.1, 10000].
    """
    if records < 1:
        raise InvalidInput(f"dataset: {records} records, at least 1 is needed", code="no_records", value=records)
    unit: Unit = "record" if units is None else "unit_id"
    drawn = records if units is None else units
    if privacy.expected_batch > drawn:
        name = "records" if units is None else "units"
        raise InvalidInput(
            f"privacy.expected_batch: {privacy.expected_batch} is more than the {drawn} {name}",
            code=f"batch_exceeds_{name}", field="privacy.expected_batch", value=privacy.expected_batch,
        )  # fmt: skip
    if privacy.steps > _MOST_STEPS:
        raise InvalidInput(
            f"privacy.steps: {privacy.steps} is more than {_MOST_STEPS}",
            code="too_many_steps", field="privacy.steps", value=privacy.steps,
        )  # fmt: skip
    sample_rate = privacy.expected_batch / drawn
    return PrivacyPlan(
        target_epsilon=privacy.target_epsilon,
        target_delta=privacy.target_delta,
        records=records,
        unit=unit,
        units=drawn,
        max_records_per_unit=1 if units is None else privacy.max_records_per_unit,
        expected_batch=privacy.expected_batch,
        sample_rate=sample_rate,
        steps=privacy.steps,
        noise_multiplier=_calibrate(privacy, sample_rate=sample_rate),
        max_grad_norm=privacy.max_grad_norm,
        clipping=privacy.clipping,
    )


def epsilon_pld(mechanisms: Sequence[Mechanism], *, target_delta: float) -> float:
    """An upper bound of epsilon at ``target_delta`` for the composition of all ``mechanisms``; 0 for none.

    Takes about 0.1 s for each different mechanism. ``inf`` where no finite epsilon holds at this delta.
    """
    return _pld(_merge(mechanisms), target_delta=target_delta, coarseness=1)


def epsilon_rdp(mechanisms: Sequence[Mechanism], *, target_delta: float) -> float:
    """The same as :func:`epsilon_pld` by RDP, which is looser."""
    merged = _merge(mechanisms)
    if not merged:
        return 0.0
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_RDP_ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    return float(accountant.compose(_event(merged)).get_epsilon(target_delta))


def signal_to_noise(*, expected_batch: int, noise_multiplier: float, trainable_parameters: int) -> float:
    """Largest norm of a step's clipped sum over the expected norm of its noise, both in units of ``max_grad_norm``.

    Well below 1 the adapter's updates are mostly noise.
    """
    return expected_batch / (noise_multiplier * math.sqrt(trainable_parameters))


def _merge(mechanisms: Sequence[Mechanism]) -> list[Mechanism]:
    """Equal mechanisms as one with more steps (fewer distributions to build), those without a step left out. Sorted,
    so that the order never matters."""
    steps: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        steps[mechanism.sample_rate, mechanism.noise_multiplier] += mechanism.steps
    return [
        Mechanism(sample_rate=rate, noise_multiplier=noise, steps=count)
        for (rate, noise), count in sorted(steps.items())
        if count > 0
    ]


def _event(mechanisms: Sequence[Mechanism]) -> DpEvent:
    import dp_accounting

    return dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(
                    mechanism.sample_rate, dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
                ),
                mechanism.steps,
            )
            for mechanism in mechanisms
        ]
    )


def _pld(mechanisms: Sequence[Mechanism], *, target_delta: float, coarseness: float) -> float:
    """Pessimistic epsilon; a larger ``coarseness`` is faster and gives a larger bound."""
    if not mechanisms:
        return 0.0
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    width = coarseness * _discretisation(mechanisms)
    if width > 1:  # epsilon is in the hundreds of thousands: no protection, and no number that could be computed
        return math.inf
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=width)
    return float(accountant.compose(_event(mechanisms)).get_epsilon(target_delta))


def _discretisation(mechanisms: Sequence[Mechanism]) -> float:
    """Width of the grid of privacy losses. It never affects whether the result is an upper bound, only how close.

    A twentieth of a step's typical loss (standard deviation of the likelihood ratio, q * sqrt(exp(1/sigma^2) - 1))
    is exact to about 0.1 %. It is made wider where one step's grid would pass 20,000 points or the composition's a
    million, so that time and memory are bounded whatever is asked.
    """
    widest = [0.5 / m.noise_multiplier**2 + 12 / m.noise_multiplier for m in mechanisms]
    losses = [
        min(m.sample_rate * math.sqrt(math.expm1(m.noise_multiplier**-2)), bound)
        for m, bound in zip(mechanisms, widest, strict=True)
    ]
    total = sum(m.steps * loss for m, loss in zip(mechanisms, losses, strict=True))
    variance = sum(m.steps * loss**2 for m, loss in zip(mechanisms, losses, strict=True))
    composed = variance + 16 * math.sqrt(variance)
    return max(min(variance / total / 20, 1e-2), max(widest) / 2e4, composed / 1e6)


def _calibrate(privacy: PrivacySpec, *, sample_rate: float) -> float:
    """The noise multiplier for the target, from above: only a value whose own epsilon was computed is returned."""

    def epsilon(noise_multiplier: float, coarseness: float = 1) -> float:
        mechanism = Mechanism(sample_rate=sample_rate, noise_multiplier=noise_multiplier, steps=privacy.steps)
        return _pld([mechanism], target_delta=privacy.target_delta, coarseness=coarseness)

    target = privacy.target_epsilon
    if epsilon(_LARGEST) > target:
        raise _unreachable(privacy, f"needs a noise multiplier above {_LARGEST:g}")
    if epsilon(_SMALLEST) <= target:
        raise _unreachable(privacy, f"needs no noise multiplier above {_SMALLEST:g}, which protects nobody")
    # A coarse bound leads close to the answer from above in little time; from there down with the close one.
    high = _bisect(lambda x: epsilon(x, coarseness=20) <= target, low=_SMALLEST, high=_LARGEST, ratio=1.02)
    while epsilon(low := high / 1.05) <= target:
        high = low
    return _bisect(lambda x: epsilon(x) <= target, low=low, high=high, ratio=1.001)


def _bisect(holds: Callable[[float], bool], *, low: float, high: float, ratio: float) -> float:
    """Narrow (low, high] in logarithms to ``ratio`` and return its upper end: ``high``, or an x for which ``holds``."""
    while high > low * ratio:
        middle = math.sqrt(low * high)
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _unreachable(privacy: PrivacySpec, why: str) -> InvalidInput:
    return InvalidInput(
        f"privacy.target_epsilon: {privacy.target_epsilon:g} at target_delta {privacy.target_delta:g} {why}",
        code="unreachable_target", field="privacy.target_epsilon", value=privacy.target_epsilon,
    )  # fmt: skip

"""Poisson sampling: at each step every unit is drawn independently with probability ``sample_rate``."""

from __future__ import annotations

import secrets
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Sampler(Protocol):
    def draw(self, step: int) -> NDArray[np.int64]:
        """Sorted indices of the units of optimizer step ``step``."""
        ...


class PoissonSampler:
    """Lots of unit indices; their size varies, and an empty one is as good as any.

    Without ``seed`` the draws come from the operating system and can't be repeated: amplification by sampling holds
    against those who don't know which units were drawn. With it, a step's lot is a function of seed and step, so that
    a resumed run needs no saved state.
    """

    def __init__(self, *, units: int, sample_rate: float, seed: int | None) -> None:
        self._units = units
        self._sample_rate = sample_rate
        self._seed = seed

    def draw(self, step: int) -> NDArray[np.int64]:
        """Sorted indices of the units of optimizer step ``step``."""
        entropy = secrets.randbits(256) if self._seed is None else [self._seed, step]
        uniform = np.random.default_rng(entropy).random(self._units)
        return np.flatnonzero(uniform < self._sample_rate)

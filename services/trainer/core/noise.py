"""Gaussian noise from the operating system's cryptographic generator. There is no seed to store, log or guess.

torch's CPU generator would not do: it keeps 32 bits of the seed it is given, few enough to try them all, and its
Mersenne Twister can be reconstructed from its output.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class NoiseSource(Protocol):
    def __call__(self, like: Tensor, *, std: float) -> Tensor:
        """Independent N(0, std^2) values in the shape, dtype and on the device of ``like``."""
        ...


def secret_gaussian(like: Tensor, *, std: float) -> Tensor:
    """A :class:`NoiseSource`: Box-Muller in float64 on fresh random bytes."""
    pairs = (like.numel() + 1) // 2
    words = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64).reshape(2, pairs)
    uniform = ((words >> np.uint64(11)) + np.uint64(1)) * 2.0**-53  # in (0, 1], 53 bits each
    radius, angle = np.sqrt(-2.0 * np.log(uniform[0])), 2.0 * np.pi * uniform[1]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: like.numel()]
    return torch.from_numpy(std * normal).reshape(like.shape).to(dtype=like.dtype, device=like.device)

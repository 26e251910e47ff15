"""Gaussian noise from the operating system's cryptographic generator. There is no seed to store, log or guess.

torch's CPU generator would not do: it keeps 32 bits of the seed it is given, few enough to try them all, and its
Mersenne Twister can be reconstructed from its output.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    def __call__(self, like: Tensor, *, std: float) -> Tensor:
        """Independent N(0, std^2) values in the shape, dtype and on the device of ``like``."""
        ...


def secret_gaussian(like: Tensor, *, std: float) -> Tensor:
    """A :class:`NoiseSource`: Box-Muller in float64 on fresh random bytes."""
    pairs = (like.numel() + 1) // 2
    words = torch.frombuffer(bytearray(os.urandom(16 * pairs)), dtype=torch.int64).view(2, pairs)
    uniform = ((words & (2**53 - 1)) + 1).double().mul_(2.0**-53)  # in (0, 1], 53 bits each
    radius, angle = uniform[0].log_().mul_(-2.0).sqrt_().mul_(std), uniform[1].mul_(2.0 * math.pi)
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()])[: like.numel()]
    return normal.reshape(like.shape).to(dtype=like.dtype, device=like.device)

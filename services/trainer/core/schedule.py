"""Learning rate: linear warm-up, then half a cosine to zero."""

from __future__ import annotations

import math


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0). Never 0 within the run: a noised step is paid for."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))

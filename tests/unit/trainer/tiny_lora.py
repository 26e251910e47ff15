"""Rows, adapters and batches that many tests of the trainer share."""

from __future__ import annotations

import torch
from peft import PeftModel

from services.trainer.core.lora import trainable
from services.trainer.core.sequences import Batch, Row, TokenSequence, collate

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

ROWS = [
    {
        "problem": "Add two numbers.",
        "solution": "def add(a, b):\n    return a + b\n",
        "lang": "python",
    },
    {
        "problem": "Sum of the even numbers of a list, zero where there is none.",
        "solution": "def even(xs):\n    n = 0\n    for x in xs:\n        if x % 2 == 0:\n            n += x\n",
        "lang": "python",
    },
    {"problem": "Say hello.", "solution": "print('hello')", "lang": "python"},
    {
        "problem": "A counter.",
        "solution": "class Counter:\n    n = 0\n\n    def up(self):\n        self.n += 1\n",
        "lang": "python",
    },
    {"problem": "Wait.", "solution": "while busy():\n    pass", "lang": "python"},
]


def randomise(model: PeftModel, *, seed: int = 1, std: float = 0.2) -> None:
    """Give the adapter an effect: B begins as zero, and then A has no gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def batch_of(sequences: list[TokenSequence]) -> Batch:
    """Each sequence a unit of its own, in their order."""
    rows = [Row(sequence=one, unit=number, weight=1.0) for number, one in enumerate(sequences)]
    return collate(rows, device=torch.device("cpu"))

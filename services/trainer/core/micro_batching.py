"""Micro-batches that get smaller where memory runs out. The sum over a lot is the same however it is cut."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch

from privcode.errors import StageFailed
from services.trainer.core.sequences import Row, TokenSequence, micro_batches

# torch's allocator on the CPU has no exception type of its own.
_CPU_ALLOCATOR: Final = "DefaultCPUAllocator: can't allocate memory"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the device or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
    )


class MicroBatches:
    """Cuts lots into at most ``size`` rows at a time. Where that is too much the size is halved, for good.

    ``seq_length`` is for the error's message.
    """

    def __init__(self, *, size: int, seq_length: int) -> None:
        self._size = size
        self._seq_length = seq_length
        self._waiting: deque[list[Row]] = deque()

    @property
    def size(self) -> int:
        return self._size

    def cut(self, lot: Sequence[Sequence[TokenSequence]]) -> None:
        """Begin a new lot of units."""
        self._waiting = deque(micro_batches(lot, size=self._size))

    def __bool__(self) -> bool:
        """Whether rows of the lot are left."""
        return bool(self._waiting)

    @contextmanager
    def next(self) -> Iterator[tuple[list[Row], bool]]:
        """The next rows, and whether their last unit has more rows after them.

        If the block runs out of memory, nothing is raised and its rows wait again, in halves. So it must change nothing
        before its end, and keep nothing alive after an error. Raises :class:`StageFailed` (``out_of_memory``) if it was
        one row.
        """
        rows = self._waiting.popleft()
        unfinished = bool(self._waiting) and self._waiting[0][0].unit == rows[-1].unit
        failed = False
        try:
            yield rows, unfinished
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        if failed:  # here the error is gone, and with its traceback what the block had allocated
            self._halve(rows)

    def _halve(self, rows: list[Row]) -> None:
        if len(rows) == 1:
            raise StageFailed(
                f"out of memory with runtime.micro_batch 1 and seq_length {self._seq_length}: set "
                "runtime.gradient_checkpointing or a smaller runtime.base_dtype, a smaller sanitize.lora.rank or "
                "sanitize.seq_length, or take a device with more memory",
                code="out_of_memory",
            )
        self._size = (len(rows) + 1) // 2
        waiting = [rows, *self._waiting]
        self._waiting = deque(part[i : i + self._size] for part in waiting for i in range(0, len(part), self._size))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

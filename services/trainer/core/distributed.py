"""Data-parallel ranks: each has its own part of every lot, and all have the same adapter.

Rank r owns the units i with i % world == r. Of a lot that was drawn with a seed all ranks together have exactly that
lot; with secret draws each rank draws for itself, and each unit is drawn by its owner alone, so that the sampling is
Poisson either way. Rank 0 gets the sum, counts the step, draws the noise once, and hands out what came of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from privcode.errors import StageFailed

Shared = TypeVar("Shared")


class Group(Protocol):
    """This process among the ranks of a run. Each method but :meth:`share` must be called by all ranks."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def reduce(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The sums over all ranks, on rank 0; what the others get is of no use. May overwrite ``tensors``."""
        ...

    def broadcast(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Rank 0's tensors; the others' have the same shapes and types, and are overwritten."""
        ...

    def broadcast_object(self, value: Shared) -> Shared:
        """Rank 0's value, which is pickled."""
        ...


class Alone:
    """The :class:`Group` of a run with one process."""

    rank = 0
    world = 1

    def reduce(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors

    def broadcast(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors

    def broadcast_object(self, value: Shared) -> Shared:
        return value


class ProcessGroup:
    """The :class:`Group` over torch's default process group, which must have been initialised.

    Needs gloo for objects, which are on the CPU, and a backend for the device that the tensors are on.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()

    def reduce(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        for tensor in tensors:
            dist.reduce(tensor, dst=0)
        return tensors

    def broadcast(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
        return tensors

    def broadcast_object(self, value: Shared) -> Shared:
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        shared: Shared = box[0]
        return shared


def share(drawn: NDArray[np.int64], *, group: Group) -> NDArray[np.int64]:
    """Those of the drawn units that this rank owns."""
    own: NDArray[np.int64] = drawn[drawn % group.world == group.rank]
    return own


def require_equal(tensors: Iterable[Tensor], *, group: Group) -> None:
    """Raise :class:`StageFailed` (``ranks_diverged``) on a rank whose tensors are not rank 0's to the bit."""
    if group.world == 1:
        return
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    if digest.digest() != group.broadcast_object(digest.digest()):
        raise StageFailed(f"the adapter of rank {group.rank} is not that of rank 0", code="ranks_diverged")

"""The processes of a data-parallel run: this one starts the others on this machine, or torchrun started them all.

Every rank runs ``python -m services.trainer.stage FOLDER``. Rank 0 is the stage's child as the worker knows it. The
others work in ``FOLDER/rank-N``, so that what they report does not mix with what rank 0 does, and write no output.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from privcode.errors import PrivCodeError, StageFailed
from privcode.stage_io import write_error
from services.trainer.core.distributed import Alone, Group, ProcessGroup

# Set for the ranks that this module starts; torchrun sets MASTER_ADDR and MASTER_PORT instead.
_STORE: Final = "PRIVCODE_RANKS_STORE"

_MODULE: Final = "services.trainer.stage"
_POLL_SECONDS: Final = 0.2
# How long rank 0 waits, after an error that another rank's end may have caused, to learn of that end.
_GRACE_SECONDS: Final = 5.0


def rank_folder(folder: Path, *, environment: Mapping[str, str]) -> Path:
    """The folder this rank works in; made with a copy of ``stage.json`` for a rank other than 0."""
    rank = int(environment.get("RANK", "0"))
    if rank == 0:
        return folder
    own = folder / f"rank-{rank}"
    own.mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(folder / "stage.json", own / "stage.json")
    return own


@contextmanager
def joined(folder: Path, *, processes: int, environment: Mapping[str, str]) -> Iterator[Group]:
    """The group of this run, with its other ranks started if nobody has done so; they end with the block.

    ``folder``: rank 0's. ``processes`` is not looked at where ``environment`` says that this is a rank already
    (``RANK``, ``WORLD_SIZE``). Raises :class:`StageFailed` (``unsupported_option``) for more local ranks than GPUs on a
    machine that has any. If another rank fails, this process writes its error as its own and exits.
    """
    if "RANK" in environment:
        world, local = int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", "0"))
        with _connected(environment.get(_STORE), rank=int(environment["RANK"]), world=world, local=local) as group:
            yield group
    elif processes == 1:
        yield Alone()
    else:
        if 0 < (gpus := torch.cuda.device_count()) < processes:
            raise StageFailed(
                f"runtime.processes: {processes}, but there are {gpus} GPUs, and a rank needs its own",
                code="unsupported_option",
            )
        store = folder / "ranks"
        store.touch(mode=0o600)
        with (
            _Others(folder, world=processes, environment={**environment, _STORE: str(store)}),
            _connected(str(store), rank=0, world=processes, local=0) as group,
        ):
            yield group


@contextmanager
def _connected(store: str | None, *, rank: int, world: int, local: int) -> Iterator[Group]:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    if store is not None:  # all ranks are on this machine: nothing of it listens on a network
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method="env://" if store is None else f"file://{store}",
        rank=rank,
        world_size=world,
    )
    try:
        yield ProcessGroup()
    finally:
        dist.destroy_process_group()


class _Others:
    """Ranks 1 to ``world - 1``, with a thread that watches them.

    A rank that fails leaves the others waiting in a collective, on a GPU for minutes. So the thread ends this process,
    and with it, by the kernel, all ranks.
    """

    def __init__(self, folder: Path, *, world: int, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._world = world
        self._environment = environment
        self._ranks: dict[int, subprocess.Popen[bytes]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)

    def __enter__(self) -> None:
        for rank in range(1, self._world):
            self._ranks[rank] = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={
                    **self._environment,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(self._world),
                },
            )
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            for rank in self._ranks.values():
                rank.wait()
        elif not isinstance(error, PrivCodeError):
            self._thread.join(_GRACE_SECONDS)  # it may have a better reason, and then does not return
        self._done.set()
        self._thread.join()
        for rank in self._ranks.values():
            rank.kill()
            rank.wait()

    def _watch(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            if self._failed():
                time.sleep(_POLL_SECONDS)  # the rank at fault may take longer to end than those that lost it
                failed = self._failed()
                # One that was killed, or had an error of ours, is why the others lost their connection.
                rank = min(failed, key=lambda rank: (failed[rank] >= 2, rank))
                write_error(self._folder, self._error(rank, failed[rank]))
                os._exit(1)

    def _failed(self) -> dict[int, int]:
        """Rank -> exit status, a signal as a negative number."""
        return {rank: code for rank, child in self._ranks.items() if (code := child.poll())}

    def _error(self, rank: int, code: int) -> StageFailed:
        try:
            error = json.loads((self._folder / f"rank-{rank}" / "error.json").read_bytes())
            return StageFailed(f"rank {rank} of {self._world}: {error['message']}", code=error["code"])
        except FileNotFoundError:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
            return StageFailed(f"rank {rank} of {self._world} {how}", code="rank_failed")

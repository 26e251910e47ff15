"""Two ranks do what one process does; noise comes once; a rank that fails ends all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from stage_bench import PRIVATE, Bench, receipt_of, spec_with
from tiny_lora import ROWS

from privcode.errors import StageFailed
from services.trainer.core.checkpoint import TrainingLog
from services.trainer.core.distributed import Alone, require_equal, share
from services.trainer.core.sampler import PoissonSampler

WORKER = Path(__file__).with_name("rank_worker.py")
NOISE_STD = 0.8 * 0.25
BATCH = 8

Seen = dict[str, Any]


class Member(Alone):
    """A rank that never talks to the others."""

    def __init__(self, *, rank: int, world: int) -> None:
        self.rank = rank  # type: ignore[misc]
        self.world = world


@pytest.fixture
def ranks(tmp_path: Path, model_folder: Callable[[str], Path]) -> tuple[Seen, list[Seen]]:
    """What a process of its own saw, and what each of two ranks saw."""
    model = model_folder("tiny")
    started = []
    for world in (1, 2):
        folder = tmp_path / f"world-{world}"
        folder.mkdir()
        for rank in range(world):
            command = [sys.executable, "-W", "ignore", str(WORKER), str(model), str(folder), str(rank), str(world)]
            environment = {
                **os.environ,
                "PYTHONPATH": str(Path.cwd()),
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
            }
            started.append(subprocess.Popen(command, env=environment))
    assert [process.wait(timeout=200) for process in started] == [0, 0, 0]
    alone, first, second = (
        torch.load(tmp_path / name) for name in ("world-1/seen-0.pt", "world-2/seen-0.pt", "world-2/seen-1.pt")
    )
    return alone, [first, second]


def test_two_ranks_against_one_process(ranks: tuple[Seen, list[Seen]]) -> None:
    alone, both = ranks
    # The same clipped sum from the same seed, in the first step; after that Adam magnifies rounding.
    for expected, found in zip(alone["sums"]["gradients"][0], both[0]["sums"]["gradients"][0], strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert [seen["sums"]["lots"] for seen in both] == [alone["sums"]["lots"], []], "rank 0 tells of the whole lot"
    assert len(set(alone["sums"]["lots"])) > 1
    # Steps are counted once.
    assert [both[0][name]["steps_taken"] for name in ("sums", "noise", "resumed")] == [3, 4, 4]
    for name in ("sums", "noise", "resumed"):
        assert alone[name]["steps_taken"] == both[0][name]["steps_taken"]
        for one, other in zip(*(seen[name]["gradients"] for seen in both), strict=True):
            assert all(map(torch.equal, one, other))
        for key, value in both[0][name]["adapter"].items():
            assert torch.equal(value, both[1][name]["adapter"][key])
    # Both went on from rank 0's checkpoint, and came where they had been.
    assert len(both[1]["resumed"]["gradients"]) == 1
    for key, value in both[1]["resumed"]["adapter"].items():
        torch.testing.assert_close(value, both[1]["sums"]["adapter"][key])
    # Empty lots: what is left is noise, drawn once, with its variance and not twice that.
    noise = torch.cat([part.flatten() for step in both[1]["noise"]["gradients"] for part in step]).double() * BATCH
    assert len(noise) > 5000
    error = (2 / len(noise)) ** 0.5
    assert float(noise.var()) / NOISE_STD**2 == pytest.approx(1, abs=5 * error)


def test_the_shares_of_a_seeded_lot_are_the_lot() -> None:
    for step in range(20):
        drawn = PoissonSampler(units=50, sample_rate=0.3, seed=5).draw(step)
        shares = [
            share(PoissonSampler(units=50, sample_rate=0.3, seed=5).draw(step), group=Member(rank=rank, world=3))
            for rank in range(3)
        ]
        assert sorted(np.concatenate(shares)) == list(drawn)


def test_secret_shares_are_independent_poisson_draws() -> None:
    """Each unit is drawn by its owner at the sample rate; two owners' draws are not the same draw."""
    rate, steps, counts = 0.3, 4000, np.zeros(4)
    together = 0
    for step in range(steps):
        lots = [
            share(PoissonSampler(units=4, sample_rate=rate, seed=None).draw(step), group=Member(rank=rank, world=2))
            for rank in range(2)
        ]
        lot = np.concatenate(lots)
        counts[lot] += 1
        together += {0, 1} <= set(lot.tolist())
    deviation = (steps * rate * (1 - rate)) ** 0.5
    assert np.abs(counts - steps * rate).max() < 5 * deviation
    assert together == pytest.approx(steps * rate**2, abs=5 * (steps * rate**2) ** 0.5)


def test_adapters_that_differ_by_a_bit_are_noticed() -> None:
    tensors = [torch.ones(3), torch.zeros(2)]
    sent: list[Any] = []

    class Connected(Member):
        """Gets what the first one sent."""

        def broadcast_object(self, value: Any) -> Any:
            sent.append(value)
            return sent[0]

    require_equal(tensors, group=Connected(rank=0, world=2))
    require_equal(tensors, group=Connected(rank=1, world=2))
    tensors[1][1] = 1e-45
    with pytest.raises(StageFailed, match="rank 1") as diverged:
        require_equal(tensors, group=Connected(rank=1, world=2))
    assert diverged.value.code == "ranks_diverged"


def until(what: Callable[[], bool], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_rank_ends_all_with_one_error(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    bench = Bench(tmp_path, model_folder("tiny").parent)
    privacy = {"target_epsilon": 3.1415, "expected_batch": 4, "steps": 5000, "data_seed": 11}
    spec = spec_with(runtime={"processes": 3, "checkpoint_every": 5}, privacy=privacy)
    stage = bench.stage("sanitize", inputs={"dataset": bench.rows("dataset", ROWS)}, spec=spec)
    command = [sys.executable, "-W", "ignore", "-m", "services.trainer.stage", str(stage.folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        taken = stage.keep_dir / "steps_taken"
        until(lambda: taken.exists() and int(taken.read_text()) > 3)
        assert (stage.folder / "ranks").stat().st_mode & 0o777 == 0o600
        one, other = sorted(psutil.Process(process.pid).children(), key=lambda child: child.pid)
        one.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == 1
        error = json.loads((stage.folder / "error.json").read_text())
        assert error == {"code": "rank_failed", "message": f"rank 1 of 3 was ended by signal {signal.SIGKILL.value}"}
        until(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE, seconds=30)
    finally:
        process.kill()
        process.wait()


def test_torchrun_starts_the_same_entry(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    bench = Bench(tmp_path, model_folder("tiny").parent)
    stage = bench.stage("sanitize", inputs={"dataset": bench.rows("dataset", PRIVATE)})
    subprocess.run(
        [
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "services.trainer.stage", str(stage.folder),
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert receipt_of(stage).steps_taken == stage.task.plan.steps == int((stage.keep_dir / "steps_taken").read_text())
    assert json.loads((stage.folder / "result.json").read_text())["metrics"]["steps_taken"] == stage.task.plan.steps
    assert not (stage.folder / "rank-1" / "outputs").exists()
    rows = list(TrainingLog(stage.keep_dir / "training_metrics.jsonl").rows())
    assert [row["step"] for row in rows] == [1, 2, 3], "rank 0 alone keeps the log"

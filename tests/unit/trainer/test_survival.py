"""A stage that is killed again and again ends with all its steps, each of them paid for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from stage_bench import PRIVATE, Bench, receipt_of, spec_with

from privcode.accounting import epsilon_pld

STEPS = 60
TENSORS = 2 * 2 * 2  # A and B of two modules in two layers
# While the counter is replaced, while a checkpoint is written, when it is there, and at other moments.
KILLS = ["steps_taken", "checkpoint.tmp", "150", "steps_taken.tmp", "200", "checkpoint.tmp", "40"]


def test_killed_at_any_moment(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    bench = Bench(tmp_path, model_folder("tiny").parent)
    privacy = {"target_epsilon": 3.1415, "expected_batch": 4, "steps": STEPS}
    spec = spec_with(privacy=privacy, runtime={"checkpoint_every": 2})
    stage = bench.stage("sanitize", inputs={"dataset": bench.rows("dataset", PRIVATE)}, spec=spec)
    output = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("killed_worker.py")), str(stage.folder), *KILLS],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    attempts = [json.loads(line) for line in output.splitlines()]
    assert len(attempts) == len(KILLS) + 1
    assert attempts[-1]["status"] == 0
    for before, after in pairwise(attempts):
        assert before["taken"] <= after["taken"] <= after["reserved"]
        assert before["checkpointed"] <= after["checkpointed"]
    assert any(one["temporary"] for one in attempts), "none was killed between a checkpoint's beginning and its name"
    assert attempts[-1]["checkpointed"] < STEPS, "nothing was left to do for the last"

    taken = int((stage.keep_dir / "steps_taken").read_text())
    receipt = receipt_of(stage)
    assert receipt.steps_taken == taken > STEPS
    mechanism = receipt.plan.mechanism.model_copy(update={"steps": taken})
    assert receipt.epsilon_spent == epsilon_pld([mechanism], target_delta=receipt.plan.target_delta)
    # Noise was never drawn for a step that is not counted.
    drawn = (stage.folder.parent / "drawn").stat().st_size
    assert STEPS * TENSORS < drawn <= taken * TENSORS
    log = [json.loads(line) for line in (stage.folder / "outputs/training_metrics/training_metrics.jsonl").open()]
    assert {row["step"] for row in log} == set(range(1, STEPS + 1))
    assert len(log) <= taken

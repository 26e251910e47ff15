"""The contract of worker and child: files in, files out, and nothing else on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from privcode.presets import resolve
from privcode.recipes import Label
from privcode.results import PrivacyPlan, SyntheticPair
from privcode.stage_io import Stage, StageEnvironment, StageInput, StageTask

PAIR = SyntheticPair(problem="Zeile\u2028zwei", solution="a\r\nb", lang="python")


def stage_task(folder: Path) -> StageTask:
    spec = resolve({"preset": "demo", "dataset": "ds_1", "prompts": "ds_2"})
    plan = PrivacyPlan(
        target_epsilon=4.0, target_delta=1e-5, records=100, expected_batch=16, sample_rate=0.16, steps=4,
        noise_multiplier=0.9, max_grad_norm=1.0, clipping="flat", unit="record", units=100, max_records_per_unit=1,
    )  # fmt: skip
    return StageTask(
        job_id="job_1",
        stage="boost",
        attempt=1,
        spec=spec,
        plan=plan,
        inputs={"synthetic": StageInput(path=str(folder / "outputs" / "synthetic"), label=Label.DP)},
        keep_dir=str(folder / "keep"),
        environment=StageEnvironment(models_dir="/models", sandbox_socket="/run/runner.sock", threads=1),
        history={},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stage.json").write_text(stage_task(tmp_path).model_dump_json())
    return tmp_path


def run(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a child whose stage ``boost`` has ``body``, as a worker does."""
    program = folder / "program.py"
    program.write_text(
        "import sys\nfrom privcode.errors import InvalidInput\nfrom privcode.stage_io import run_child\n"
        f"def boost(stage):\n    {body}\nrun_child({{'boost': boost}})\n"
    )
    return subprocess.run([sys.executable, program, folder], capture_output=True, text=True, check=False)


def read(path: Path) -> object:
    return json.loads(path.read_text())


def test_a_task_survives_its_file(folder: Path) -> None:
    assert Stage(folder).task == stage_task(folder)


def test_a_task_with_an_unknown_field_is_refused(folder: Path) -> None:
    task = json.loads((folder / "stage.json").read_text()) | {"noise_seed": 1}
    (folder / "stage.json").write_text(json.dumps(task))
    with pytest.raises(ValidationError, match="noise_seed"):
        Stage(folder)


def test_what_one_stage_writes_the_next_one_reads(folder: Path) -> None:
    stage = Stage(folder)
    stage.write_rows("synthetic", [PAIR, PAIR.model_dump()])
    assert stage.read_models("synthetic", SyntheticPair) == [PAIR, PAIR]
    stage.write_model("synthetic", PAIR)
    assert stage.read_model("synthetic", SyntheticPair) == PAIR


def test_a_child_reports_progress_and_then_its_result(folder: Path) -> None:
    child = run(folder, "stage.progress(1, 2, 'half'); stage.metric('rows', 7); stage.progress(2, 2)")
    assert child.returncode == 0, child.stderr
    assert [json.loads(line) for line in child.stdout.splitlines()] == [
        {"progress": {"done": 1, "total": 2, "note": "half"}},
        {"progress": {"done": 2, "total": 2, "note": ""}},
    ]
    assert read(folder / "result.json") == {"metrics": {"rows": 7}}
    assert not (folder / "error.json").exists()


def test_what_a_library_prints_does_not_enter_the_protocol(folder: Path) -> None:
    child = run(folder, "print('loss 0.1', flush=True); import os; os.system('echo loss 0.2'); stage.progress(1, 1)")
    assert "loss" not in child.stdout
    assert "loss 0.1" in child.stderr
    assert "loss 0.2" in child.stderr
    assert len(child.stdout.splitlines()) == 1


def test_an_error_of_ours_keeps_its_code_and_message(folder: Path) -> None:
    child = run(folder, "raise InvalidInput('no row is left', code='nothing_left')")
    assert child.returncode == 1
    assert read(folder / "error.json") == {"code": "nothing_left", "message": "no row is left"}
    assert not (folder / "result.json").exists()


def test_of_any_other_error_only_the_type_leaves_the_private_log(folder: Path) -> None:
    child = run(folder, "raise KeyError('a private row')")
    assert child.returncode == 2
    error = (folder / "error.json").read_text()
    assert json.loads(error)["code"] == "stage_crashed"
    assert "KeyError" in error
    assert "private row" not in error
    assert "private row" in child.stderr
    assert not (folder / "result.json").exists()

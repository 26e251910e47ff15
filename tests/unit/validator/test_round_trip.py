from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from privcode.results import Candidate, ExecutedCandidate, Outcome
from services.validator.core.round_trip import judge, passed, synthetic_pairs
from services.validator.stage import run_collect, run_round_trip
from tests.stages import metrics, output_rows, progress, stage_folder
from tests.tiny import SOLUTION


def candidate(
    number: int, *, outcome: Outcome = Outcome.PASSED, problem: str = "Return the argument."
) -> ExecutedCandidate:
    return ExecutedCandidate(
        id=f"c{number:06d}", problem=problem, language="python", code=SOLUTION, outcome=outcome, duration_s=0.1
    )


def test_only_what_ran_to_the_end_goes_on() -> None:
    every = [candidate(number, outcome=outcome) for number, outcome in enumerate(Outcome)]
    assert [one.outcome for one in passed(every)] == [Outcome.PASSED]


def test_every_candidate_gets_its_verdict_and_keeps_its_score() -> None:
    candidates = [candidate(number) for number in range(4)]
    verdicts = judge(candidates, descriptions=["a", None, "b", "c"], f1=[0.7, 0.5, 0.4999], tau=0.5)
    assert [(one.id, one.f1, one.kept, one.reason) for one in verdicts] == [
        ("c000000", 0.7, True, "kept"),
        ("c000001", None, False, "no_description"),
        ("c000002", 0.5, True, "kept"),
        ("c000003", 0.4999, False, "below_tau"),
    ]
    pairs = synthetic_pairs(candidates, verdicts=verdicts)
    assert [(pair.problem, pair.solution, pair.lang) for pair in pairs] == [
        ("Return the argument.", SOLUTION, "python")
    ] * 2


def test_tau_minus_one_keeps_all_that_was_described() -> None:
    verdicts = judge([candidate(0), candidate(1)], descriptions=["a", None], f1=[-0.3], tau=-1)
    assert [one.kept for one in verdicts] == [True, False]


@pytest.mark.parametrize(("tau", "kept"), [(-1, 2), (0.3, 2), (1, 0)])
def test_the_stage(tmp_path: Path, tiny_llama: Path, capfd: pytest.CaptureFixture[str], tau: float, kept: int) -> None:
    shutil.copytree(tiny_llama, tmp_path / "models" / "tiny")
    executed = [
        candidate(0, problem="Write a Python function `same(value)`.\n\nReturn the argument unchanged."),
        candidate(1, outcome=Outcome.TIMED_OUT),
        candidate(2, problem="Write a Python function `first(pair)`.\n\nReturn the first element of a pair."),
    ]
    stage = stage_folder(
        tmp_path / "stage",
        stage="round_trip",
        spec={
            "round_trip": {
                "describer": "local/tiny", "scorer": "all-minilm-l6-v2", "samples": 1, "temperature": 0,
                "max_new_tokens": 32, "tau": tau,
            }
        },
        inputs={"executed": executed},
        models_dir=tmp_path / "models",
    )  # fmt: skip
    run_round_trip(stage)
    scored = output_rows(stage, "scored")
    assert [row["id"] for row in scored] == ["c000000", "c000002"]
    assert all(-1 <= row["f1"] <= 1 for row in scored)
    assert len(output_rows(stage, "synthetic")) == kept
    assert metrics(stage) == {"described": 2, "kept": kept, "below_tau": 2 - kept, "no_description": 0}
    steps = progress(capfd.readouterr().out)
    assert steps[0] == (0, 4)
    assert steps[-1] == (4, 4)
    assert steps == sorted(steps)


def test_the_stage_with_nothing_that_ran_needs_no_model(tmp_path: Path) -> None:
    stage = stage_folder(
        tmp_path / "stage",
        stage="round_trip",
        spec={"round_trip": {"describer": "local/missing", "scorer": "local/missing"}},
        inputs={"executed": [candidate(0, outcome=Outcome.FAILED)]},
        models_dir=tmp_path,
    )
    run_round_trip(stage)
    assert output_rows(stage, "scored") == output_rows(stage, "synthetic") == []
    assert metrics(stage) == {"described": 0, "kept": 0, "below_tau": 0, "no_description": 0}


def test_without_filters_every_answer_with_a_code_block_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = [
        "```python\nraise SystemExit(1)\n```", "no code at all", "```rust\nfn main() {}\n```", "```python\nunclosed",
    ]  # fmt: skip
    candidates = [
        Candidate(id=f"c{n}", prompt_index=n, problem=f"p{n}", completion=answer, finish_reason="stop")
        for n, answer in enumerate(answers)
    ]
    stage = stage_folder(
        tmp_path / "stage", stage="collect", models_dir=tmp_path, inputs={"candidates": candidates},
        spec={"recipe": "nopostprocess"},
    )  # fmt: skip
    run_collect(stage)
    assert output_rows(stage, "synthetic") == [
        {"problem": "p0", "solution": "raise SystemExit(1)\n", "lang": "python"},
        {"problem": "p2", "solution": "fn main() {}\n", "lang": "rust"},
    ]
    assert metrics(stage) == {"kept": 2, "no_code": 2}
    assert progress(capfd.readouterr().out) == [(4, 4)]

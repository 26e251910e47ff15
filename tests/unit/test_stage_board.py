"""The board that shows a job's stages in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from privcode.cli.stage_board import _PURPOSE, StageBoard, duration
from privcode.presets import resolve
from privcode.recipes import PRIVCODE, RECIPES, stages_of
from tests.api_stub import event
from tests.recipes import WARM_UP, request_of


def test_every_stage_has_words_that_fit_the_board() -> None:
    names = {stage.name for recipe in RECIPES for stage in stages_of(resolve(request_of(recipe)))}
    names |= {stage.name for stage in stages_of(resolve(request_of("dpft", warm_up=WARM_UP)))}
    assert set(_PURPOSE) == names
    assert max(map(len, names)) <= 13
    assert max(map(len, _PURPOSE.values())) <= 35


def test_the_board_fits_80_columns_and_shows_each_stage_once() -> None:
    board = StageBoard([stage.name for stage in PRIVCODE], clock=lambda: 100.0)
    for number_, (type_, data) in enumerate(
        [
            ("stage.running", {"stage": "sanitize"}),
            ("stage.progress", {"stage": "sanitize", "done": 3, "total": 4, "note": "a note " * 20}),
            ("stage.succeeded", {"stage": "sanitize", "metrics": {}}),
            ("stage.running", {"stage": "merge_junior"}),
            ("stage.failed", {"stage": "merge_junior", "code": "stage_crashed"}),
            ("stage.skipped", {"stage": "synthesize"}),
            ("stage.running", {"stage": "audit"}),
            ("job.failed", {"code": "stage_crashed", "message": "x"}),
            ("stage.running", {"stage": "of a newer server"}),
            ("something.new", {}),
        ],
        start=1,
    ):
        board.update(event(number_, type_, **data))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(board)
    lines = console.export_text().splitlines()
    assert [line.split()[1] for line in lines] == [stage.name for stage in PRIVCODE]
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("✓")
    assert "3/4" in lines[0]
    assert "✗" in lines[1]
    assert "stage_crashed" in lines[1]
    assert "1:33" in lines[8], "a running stage's time is measured to now"


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3787, "1:03:07")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown

from __future__ import annotations

import shutil
from pathlib import Path

import bert_score
import pytest

from lm.models import resolve_model
from services.validator.core.score import BertScorer

DESCRIPTIONS = [
    "You are tasked with writing a Python function that reverses a string.",
    "You are tasked with computing the greatest common divisor of two integers.",
    "You are tasked with parsing a date from a log line.",
]
PROBLEMS = [
    "Write a Python function `rev(s)`.\n\nReturn the string backwards.",
    "Write a Python function `gcd(a, b)`.\n\nGreatest common divisor.",
    "Write a Python function `log_date(line)`.\n\nFind the date in a line of the log.",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(resolve_model("all-minilm-l6-v2", models_dir=tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def scorer(encoder: Path) -> BertScorer:
    return BertScorer(str(encoder))


def test_f1_is_bert_scores(scorer: BertScorer, encoder: Path) -> None:
    _, _, expected = bert_score.score(DESCRIPTIONS, PROBLEMS, model_type=str(encoder), num_layers=6)
    assert scorer.f1(DESCRIPTIONS, PROBLEMS) == pytest.approx(expected.tolist(), abs=1e-5)


def test_right_pairs_score_higher_than_shuffled_ones(scorer: BertScorer) -> None:
    right = scorer.f1(DESCRIPTIONS, PROBLEMS)
    shuffled = scorer.f1(DESCRIPTIONS, PROBLEMS[1:] + PROBLEMS[:1])
    assert min(right) > max(shuffled)


def test_a_text_scores_one_against_itself(scorer: BertScorer) -> None:
    assert scorer.f1(PROBLEMS, PROBLEMS) == pytest.approx([1.0] * 3, abs=1e-5)


def test_scores_do_not_depend_on_company_and_progress_is_told(
    scorer: BertScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scorer.f1(DESCRIPTIONS, PROBLEMS)
    monkeypatch.setattr("services.validator.core.score._CHUNK", 2)
    done: list[int] = []
    assert scorer.f1(DESCRIPTIONS, PROBLEMS, on_done=done.append) == pytest.approx(whole, abs=1e-5)
    assert done == [2, 3]


def test_texts_beyond_the_encoders_context_are_cut(scorer: BertScorer) -> None:
    long = "a function that sorts numbers " * 400
    (f1,) = scorer.f1([long], [long + "and then something else"])
    assert f1 == pytest.approx(1.0, abs=1e-5)


def test_text_without_a_token_scores_nothing(scorer: BertScorer) -> None:
    assert scorer.f1(["\u200b"], ["Write a function."]) == [0.0]


def test_nothing_to_score(scorer: BertScorer) -> None:
    assert scorer.f1([], []) == []


def test_the_folders_name_does_not_matter(encoder: Path, tmp_path: Path, scorer: BertScorer) -> None:
    # bert_score would take this one for a T5 model.
    elsewhere = tmp_path / "project5" / "t5"
    shutil.copytree(encoder, elsewhere)
    assert BertScorer(str(elsewhere)).f1(DESCRIPTIONS, PROBLEMS) == scorer.f1(DESCRIPTIONS, PROBLEMS)


def test_a_tokenizer_without_a_maximum_gets_the_models(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    config = folder / "tokenizer_config.json"
    config.write_text(
        config.read_text().replace('"model_max_length": 512', '"model_max_length": 1000000000000000019884624838656')
    )
    long = "numbers " * 2000
    assert BertScorer(str(folder)).f1([long], [long]) == pytest.approx([1.0], abs=1e-5)

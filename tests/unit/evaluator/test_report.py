"""The report: figures unchanged, words that follow from them, nothing private."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from finished_job import SECRET, Finished, canary_audit, candidates, evaluation, history, job_spec, receipt
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from privcode.errors import StageFailed
from privcode.presets import resolve
from privcode.recipes import Label
from privcode.results import Outcome, SyntheticPair
from services.evaluator.core.audit import no_audit
from services.evaluator.core.history import History
from services.evaluator.core.render import REASONS, render_html
from services.evaluator.core.report import LABELS, Report
from services.evaluator.core.statements import exact, round_up
from tests.recipes import WARM_UP, request_of


def _codes(report: Report) -> list[str]:
    return [notice.code for notice in report.warnings]


def test_target_epsilon_is_the_same_number_in_json_and_page(finished: Finished) -> None:
    report = finished.report()
    data = json.loads(report.model_dump_json())
    assert data["guarantee"]["target_epsilon"] == 3.1415
    assert data["guarantee"]["target_delta"] == 1e-5
    assert data["guarantee"]["receipt"] == json.loads(finished.inputs["receipt"].model_dump_json())
    assert '"target_epsilon":3.1415' in report.model_dump_json()
    page = render_html(report)
    assert re.search(r"target_epsilon</th><td>3\.1415</td>", page)
    assert re.search(r"target_delta</th><td>1e-5</td>", page)
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_the_funnel_counts_each_loss_once(finished: Finished) -> None:
    funnel = finished.report().candidates.funnel
    assert (funnel.candidates, funnel.ran, funnel.described, funnel.kept) == (32, 19, 18, 14)
    assert funnel.lost == {"no_code": 8, "failed": 4, "below_tau": 4, "timed_out": 1, "no_description": 1}
    assert funnel.candidates == funnel.kept + sum(funnel.lost.values())


def test_a_funnel_in_which_nothing_ran(finished: Finished) -> None:
    report = finished.report(**candidates({Outcome.NO_CODE: 3}, []))
    assert (report.candidates.funnel.ran, report.candidates.funnel.kept) == (0, 0)
    assert "3 candidates" in render_html(report)


def test_every_reason_for_loss_has_words() -> None:
    assert set(REASONS) == {outcome.value for outcome in Outcome} - {"passed"} | {"no_description", "below_tau"}


def _without_filters(finished: Finished, *, kept: int) -> Report:
    pair = SyntheticPair(problem=SECRET, solution=SECRET, lang="python")
    spec = resolve(request_of("nopostprocess", privacy={"target_epsilon": 3.1415}))
    return finished.report(spec=spec, executed=None, scored=None, synthetic=[pair] * kept)


def test_without_filters_the_one_loss_is_an_answer_without_code(finished: Finished) -> None:
    report = _without_filters(finished, kept=24)
    assert report.candidates
    funnel = report.candidates.funnel
    assert (funnel.candidates, funnel.ran, funnel.described, funnel.kept) == (32, None, None, 24)
    assert funnel.lost == {"no_code": 8}
    assert "Nothing was filtered" in report.candidates.execution_filter
    page = render_html(report)
    assert "Nothing was filtered" in page
    assert "Described" not in page
    assert "τ" not in page
    with pytest.raises(StageFailed, match="synthetic pairs"):
        _without_filters(finished, kept=33)


NOTHING_SYNTHESIZED = {"candidates": None, "executed": None, "scored": None, "synthetic": None}


def _first_lines(page: str) -> str:
    """What a reader sees before the first figure."""
    return page[page.index("<body>") : page.index('<div class="tiles">')]


def test_a_report_without_a_mechanism_begins_with_that(finished: Finished) -> None:
    report = finished.report(
        spec=resolve(request_of("nondpft")), receipt=None, label=Label.PRIVATE, history=history(prompts=None),
        **NOTHING_SYNTHESIZED,
    )  # fmt: skip
    assert report.guarantee.model_dump() | {"statement": ""} == {
        "covers": "nothing", "target_epsilon": None, "target_delta": None, "receipt": None, "statement": "",
    }  # fmt: skip
    assert (report.label, report.candidates, report.prompts) == ("private", None, None)
    assert {part: figure.label for part, figure in report.labels.items()} == {
        "guarantee": "public", "quality": "private", "audit": "private", "budget": "public", "stages": "operational",
    }  # fmt: skip
    page = render_html(report)
    assert "NO PRIVACY GUARANTEE" in _first_lines(page)
    for words in ("ε 0", "of target", "noise_multiplier", "Synthetic pairs", "candidates", "rests on the accounting"):
        assert words not in page, words
    assert not {"noise_outweighs_signal", "prompts_asserted_public", "canaries_planted"} & set(_codes(report))
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_a_report_of_two_trainings_says_which_one_is_covered(finished: Finished) -> None:
    spec = resolve(request_of("jft", privacy={"target_epsilon": 3.1415}))
    report = finished.report(spec=spec, label=Label.PRIVATE, history=history(prompts=None), **NOTHING_SYNTHESIZED)
    assert (report.guarantee.covers, report.guarantee.target_epsilon) == ("last_training", 3.1415)
    page = render_html(report)
    assert "DOES NOT COVER" in _first_lines(page)
    assert "whatever models and data this job releases" not in page
    assert "ε 3.1415" in page
    assert "second training alone" in page


def test_a_released_report_has_no_alert(finished: Finished) -> None:
    report = finished.report()
    assert (report.guarantee.covers, report.label) == ("released", "dp")
    assert 'role="alert"' not in render_html(report)


def test_recipe_warm_up_and_limited_rows_are_named(finished: Finished) -> None:
    spec = resolve(request_of("dpft", privacy={"target_epsilon": 3.1415}, rows_of_job="job_2", warm_up=WARM_UP))
    report = finished.report(
        spec=spec, history=history(prompts=None, warm_up={"id": "ds_3", "name": "open-pairs"}), **NOTHING_SYNTHESIZED
    )
    assert (report.rows_of_job, report.warm_up and report.warm_up.name) == ("job_2", "open-pairs")
    assert {"rows_limited", "warm_up_asserted_public"} <= set(_codes(report))
    first = _first_lines(render_html(report))
    for words in (report.recipe, "job_2", "open-pairs"):
        assert words in first, words


@pytest.mark.parametrize("recipe", ["privcode", "nondpft"])
def test_a_receipt_where_there_is_no_target_is_refused_and_the_other_way_round(finished: Finished, recipe: str) -> None:
    given = receipt(finished.inputs["spec"]) if recipe == "nondpft" else None
    with pytest.raises(StageFailed) as raised:
        finished.report(spec=resolve(request_of(recipe)), receipt=given)
    assert raised.value.code == "inconsistent_artifacts"


def test_artifacts_that_do_not_belong_together_are_refused(finished: Finished) -> None:
    for wrong in (
        {"receipt": receipt(job_spec(target_epsilon=2.0))},
        {"executed": finished.inputs["executed"][1:]},
        {"scored": finished.inputs["scored"][1:]},
        {"evaluation": evaluation(base=1, tuned=1).model_copy(update={"scores": ()})},
    ):
        with pytest.raises(StageFailed) as raised:
            finished.report(**wrong)
        assert raised.value.code == "inconsistent_artifacts"
        assert SECRET not in raised.value.message


def test_noise_above_the_signal_is_said_from_the_figures(finished: Finished) -> None:
    spec = finished.inputs["spec"]
    (text,) = [notice.text for notice in finished.report().warnings if notice.code == "noise_outweighs_signal"]
    assert "proves the machinery, not the utility" in text
    assert "0.111" in text
    assert "46,080" in text
    assert "noise_outweighs_signal" not in _codes(finished.report(receipt=receipt(spec, signal_to_noise=1.0)))


def test_a_difference_within_overlapping_intervals_is_noise(finished: Finished) -> None:
    assert "within noise" in finished.report().quality[0].statement
    clear = finished.report(evaluation=evaluation(base=10, tuned=90, n=100)).quality[0].statement
    assert "do not overlap" in clear
    assert clear.endswith("the tuned model is better.")
    worse = finished.report(evaluation=evaluation(base=90, tuned=10, n=100)).quality[0].statement
    assert worse.endswith("the tuned model is worse.")
    none = finished.report(evaluation=evaluation(base=0, tuned=0, n=0, excluded=20))
    assert "nothing to compare" in none.quality[0].statement
    assert "tasks_excluded" in _codes(none)
    assert "unknown" in render_html(none)


def test_canaries_in_words(finished: Finished) -> None:
    none_found = finished.report()
    assert "43.4 %" in none_found.audit.statement
    assert "prove little" in none_found.audit.statement
    leaked = finished.report(audit=canary_audit("password", "name"))
    assert _codes(leaked)[0] == "canaries_leaked"
    assert "2 of 5" in leaked.warnings[0].text
    absent = finished.report(audit=no_audit())
    assert "no_canaries" in _codes(absent)
    assert "none planted" in render_html(absent)


def test_the_exit_code_filter_is_explained_with_its_limit(finished: Finished) -> None:
    text = finished.report().candidates.execution_filter
    assert "within 5 s" in text
    assert "not that it does what the problem asks" in text


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"steps_taken": 6, "epsilon_spent": 3.9}, "target_exceeded"),
        ({"sampling_seed": "given"}, "sampling_seed_given"),
    ],
)
def test_weaknesses_of_the_guarantee_are_named(changes: dict[str, Any], code: str, finished: Finished) -> None:
    assert code not in _codes(finished.report())
    assert code in _codes(finished.report(receipt=receipt(finished.inputs["spec"], **changes)))


def test_a_delta_not_below_one_over_n_is_named(finished: Finished) -> None:
    spec = job_spec(target_epsilon=3.1415, target_delta=0.01)
    assert "delta_too_large" in _codes(finished.report(spec=spec, receipt=receipt(spec)))


def test_the_unit_is_named_wherever_the_guarantee_is(finished: Finished) -> None:
    spec = finished.inputs["spec"]
    words = "all records with one unit_id, of which at most 8 are used"
    plan = receipt(spec).plan.model_copy(update={"unit": "unit_id", "units": 105, "max_records_per_unit": 8})
    report = finished.report(receipt=receipt(spec, plan=plan, unit=words))
    assert f"The unit is {words}" in report.guarantee.statement
    assert all((words in label.reason) is (label.label == "dp") for label in report.labels.values())
    page = render_html(report)
    assert page.count(words) >= 2
    assert "(16 of 105 units, Poisson)" in page
    assert "The unit is one record" in finished.report().guarantee.statement
    # 100 units without the canaries.
    loose = job_spec(target_epsilon=3.1415, target_delta=0.01)
    plan = plan.model_copy(update={"target_delta": 0.01})
    (text,) = (
        notice.text
        for notice in finished.report(spec=loose, receipt=receipt(loose, plan=plan, unit=words)).warnings
        if notice.code == "delta_too_large"
    )
    assert "1 in 100 units" in text


def test_what_the_sampler_did_is_shown(finished: Finished) -> None:
    page = render_html(finished.report())
    assert "1,000 test lots before training: 16.1 units on average (expected 16), variance 15.2" in page


def test_history_with_a_gap_is_refused() -> None:
    data = history().model_dump()
    for part in data:
        with pytest.raises(ValidationError):
            History.model_validate({key: value for key, value in data.items() if key != part})


def _walk(value: object) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in _walk(item))]
    if isinstance(value, list):
        return [text for item in value for text in _walk(item)]
    return [value] if isinstance(value, str) else []


def test_nothing_private_in_the_report(finished: Finished) -> None:
    stages = [{"name": "sanitize", "seconds": 9.0, "metrics": {"secret_loss_metric": 1.2345}}]
    report = finished.report(history=history(stages=stages))
    texts, page = _walk(json.loads(report.model_dump_json())), render_html(report)
    for text in (*texts, page):
        assert SECRET not in text
        assert "secret_loss_metric" not in text
    assert "1.2345" not in page
    keys = {text for text in texts if re.fullmatch(r"[a-z_]+", text)}
    assert not keys & {"loss", "batch_size", "clip_fraction", "problem", "completion", "description", "value_text"}
    assert not any("loss" in key for key in keys)


def test_each_part_with_figures_has_a_label() -> None:
    texts = {
        "schema_version", "label", "job", "recipe", "dataset", "rows_of_job", "prompts", "warm_up", "models",
        "warnings", "labels",
    }  # fmt: skip
    assert set(LABELS) == set(Report.model_fields) - texts


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_self_contained_and_runs_nothing(finished: Finished) -> None:
    text = render_html(finished.report())
    page = _Page()
    page.feed(text)
    names = [tag for tag, _ in page.tags]
    assert names.count("svg") == 4
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(names)
    for _, attributes in page.tags:
        assert not {"src", "href", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert text.startswith("<!doctype html>")
    assert all("aria-label" in attributes for tag, attributes in page.tags if tag == "svg")


def test_names_are_escaped(finished: Finished) -> None:
    evil = "<script>alert(1)</script>\"'"
    page = render_html(finished.report(history=history(dataset={"id": "ds_1", "name": evil, "records": 592})))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_job_without_preset_and_stages_renders(finished: Finished) -> None:
    job = {"id": "job_1", "created_at": 0, "recipe": "privcode", "preset": None}
    page = render_html(finished.report(history=history(job=job, stages=[])))
    assert "preset" not in page
    assert "1 January 1970" in page


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_exact_loses_no_digit_and_a_spent_epsilon_never_shrinks(value: float) -> None:
    assert float(exact(value)) == value
    assert float(round_up(value)) >= value - 1e-9
    assert math.isclose(float(round_up(value)), value, abs_tol=1.01e-4)

"""The command line: what it prints, its exit status, and what it asks of the service."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from privcode.cli import app
from privcode.cli.report_view import read_report, report_view
from privcode.cli.views import left, number, spent
from privcode.errors import PrivCodeError
from privcode.presets import resolve
from privcode.recipes import Label
from privcode.results import wilson
from services.evaluator.core.report import Report
from tests.api_stub import Answer, ApiStub, event, job, listing, plan, running_stub
from tests.recipes import request_of
from tests.unit.evaluator.finished_job import finished_job, history

EVENTS = "/v1/jobs/job_1/events"
BUDGET = {"epsilon": 8.0, "delta": 1e-5, "epsilon_spent": 0.0, "epsilon_committed": 3.99991, "epsilon_left": 4.00009}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiStub]:
    with running_stub() as running:
        yield running


@pytest.fixture
def stub(server: ApiStub, monkeypatch: pytest.MonkeyPatch) -> ApiStub:
    server.clear()
    monkeypatch.setenv("PRIVCODE_URL", server.url)
    monkeypatch.setenv("PRIVCODE_API_KEY", "pc_a_b")
    monkeypatch.setenv("COLUMNS", "80")
    return server


@pytest.fixture
def request_file(tmp_path: Path) -> str:
    path = tmp_path / "job.json"
    path.write_text('{"preset": "demo", "dataset": "ds_1", "prompts": "ds_2"}')
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_submit_prints_the_id_and_sends_the_request(stub: ApiStub, request_file: str) -> None:
    stub.on("POST", "/v1/jobs", Answer.json(job(warnings=["delta is large"]), status=201))
    result = run("submit", request_file)
    assert (result.exit_code, result.stdout) == (0, "job_1\n")
    assert "delta is large" in result.stderr
    assert json.loads(stub.seen[0].body) == json.loads(Path(request_file).read_text())


def test_a_refusal_is_exit_1_with_code_field_and_value_on_stderr(stub: ApiStub, request_file: str) -> None:
    stub.on(
        "POST", "/v1/jobs",
        Answer.problem(
            409, code="budget_exceeded", detail="does not fit", field="privacy.target_epsilon", value=4.0
        ),
    )  # fmt: skip
    result = run("submit", request_file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: does not fit\n       code budget_exceeded, field privacy.target_epsilon, value 4.0\n"
    )


@pytest.mark.parametrize(
    ("content", "words"), [("{", "is not JSON"), ('{"a": NaN}', "NaN"), ("[]", "no JSON object"), ("\xff", "not JSON")]
)
def test_a_file_that_is_no_request_is_wrong_usage(stub: ApiStub, tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "job.json"
    path.write_bytes(content.encode("latin-1"))
    for command in ("submit", "estimate"):
        result = run(command, str(path))
        assert result.exit_code == 2
        assert words in result.stderr
    assert stub.seen == []


@pytest.mark.parametrize("arguments", [("submit", "no-such-file"), ("nonsense",), ("upload", "x"), ("show",)])
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_following_to_the_end_in_plain_lines(stub: ApiStub, request_file: str) -> None:
    stub.on("POST", "/v1/jobs", Answer.json(job("queued"), status=201))
    stub.on("GET", "/v1/jobs/job_1", Answer.json(job("succeeded")))
    stub.on(
        "GET", EVENTS,
        Answer.events(
            event(1, "job.running"), event(2, "stage.running", stage="sanitize", attempt=1),
            event(20, "stage.progress", stage="sanitize", done=1, total=4, note="step 1"),
            event(21, "stage.progress", stage="sanitize", done=2, total=4, note="too soon after the last"),
            event(40, "stage.progress", stage="sanitize", done=4, total=4, note=""),
            event(72, "stage.succeeded", stage="sanitize", metrics={}), event(73, "job.succeeded"),
        ),
    )  # fmt: skip
    result = run("submit", request_file, "--follow")
    assert result.exit_code == 0, result.stderr
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "job_1",
        "[ 1/2] sanitize      learns private code under DP",
        "[ 1/2] sanitize      1/4 step 1",
        "[ 1/2] sanitize      4/4",
        "[ 1/2] sanitize      done in 1:10",
        "job_1 succeeded",
    ]


def test_a_job_that_fails_is_exit_1_with_its_code(stub: ApiStub) -> None:
    failed = job("failed", error={"code": "no_synthetic_data", "message": "nothing was kept"})
    stub.on("GET", "/v1/jobs/job_1", Answer.json(failed))
    ends = (event(1, "stage.failed", stage="sanitize", code="no_synthetic_data"), event(2, "job.failed"))
    stub.on("GET", EVENTS, Answer.events(*ends))
    result = run("show", "job_1", "--follow")
    assert result.exit_code == 1
    assert "sanitize      failed: no_synthetic_data" in result.stdout
    assert "nothing was kept" in result.stderr
    assert "no_synthetic_data" in result.stderr


def test_ctrl_c_while_following_leaves_the_job_alone(stub: ApiStub) -> None:
    stub.on("GET", "/v1/jobs/job_1", Answer.json(job()))
    stub.on("GET", EVENTS, Answer.events(event(1, "stage.running", stage="sanitize"), hold=True))
    process = subprocess.Popen(
        [sys.executable, "-m", "privcode.cli", "show", "job_1", "--follow"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout
    assert "sanitize" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "")
    assert "job_1 goes on without you" in stdout
    assert {seen.method for seen in stub.seen} == {"GET"}


def test_upload_tells_the_format_from_the_name(stub: ApiStub, tmp_path: Path) -> None:
    summary = {
        "rows": 3,
        "units": 2,
        "duplicates_removed": 1,
        "skipped": {"no_docstring": 7},
        "languages": {"python": 3},
    }
    dataset = {
        "object": "dataset", "id": "ds_1", "name": "x", "visibility": "private", "kind": "pairs", "rows": 3,
        "units": 2, "sha256": "", "summary": summary, "budget": BUDGET, "created_at": 1.0,
    }  # fmt: skip
    stub.on("POST", "/v1/datasets", Answer.json(dataset, status=201))
    for name, format in (("a.jsonl", "jsonl"), ("a.tar.gz", "archive"), ("a.tgz", "archive")):
        (tmp_path / name).write_text("x")
        result = run("upload", str(tmp_path / name), "--visibility", "private", "--budget-epsilon", "8")
        assert result.exit_code == 0, result.stderr
        assert f"format={format}" in stub.seen[-1].query
        assert f"name={name}" in stub.seen[-1].query
    assert "3 pairs, private" in result.stdout
    assert "2, by unit_id" in result.stdout
    assert "unit=" not in stub.seen[-1].query
    run("upload", str(tmp_path / "a.tgz"), "--visibility", "private", "--unit", "file")
    assert "unit=file" in stub.seen[-1].query
    assert "7 no docstring" in result.stdout
    (tmp_path / "a.bin").write_text("x")
    result = run("upload", str(tmp_path / "a.bin"), "--visibility", "private")
    assert (result.exit_code, "--format" in result.stderr) == (2, True)


def test_jobs_show_and_cancel(stub: ApiStub) -> None:
    stub.on("GET", "/v1/jobs", Answer.json(listing()), Answer.json(listing(job(id="job_" + "a" * 24))))
    assert run("jobs").stdout == "no jobs yet\n"
    listed = run("jobs").stdout
    assert "job_" + "a" * 24 in listed
    assert "0/2" in listed
    shown = job("failed", error={"code": "stage_crashed", "message": "sanitize stopped"}, warnings=["noise"])
    stub.on("GET", "/v1/jobs/job_1", Answer.json(shown))
    assert "stage_crashed: sanitize stopped" in run("show", "job_1").stdout
    stub.on("POST", "/v1/jobs/job_1/cancel", Answer.json(job("cancelling")))
    assert run("cancel", "job_1").stdout == "job_1 cancelling\n"


ESTIMATE: dict[str, Any] = {
    "object": "estimate", "plan": plan(target_epsilon=3.1415), "epsilon_rdp": 4.9, "trainable_parameters": 57600,
    "signal_to_noise": 0.1, "fits": True, "budget": BUDGET, "warnings": ["the noise outweighs the signal"],
}  # fmt: skip


def test_estimate_tells_what_it_costs(stub: ApiStub, request_file: str) -> None:
    stub.on("POST", "/v1/jobs/estimate", Answer.json(ESTIMATE), Answer.json(ESTIMATE | {"fits": False}))
    shown = run("estimate", request_file).stdout
    for words in ("epsilon 3.1415 at delta 1e-5", "one record", "4 steps", "57,600", "at least 10 times its signal",
                  "3.9999 of 8 committed, 4.0000 left", "fits the budget", "! the noise outweighs"):  # fmt: skip
        assert words in shown or words.replace("3.9999", "4.0000") in shown, words
    assert "exceeds the budget" in run("estimate", request_file).stdout
    assert all(len(line) <= 80 for line in shown.splitlines())
    by_unit = {"plan": plan(unit="unit_id", units=123, max_records_per_unit=8)}
    stub.on("POST", "/v1/jobs/estimate", Answer.json(ESTIMATE | by_unit))
    shown = " ".join(run("estimate", request_file).stdout.split())
    assert "all records with one unit_id, of which at most 8 are used" in shown
    assert "(expected 16 of 123)" in shown


def test_what_is_spent_is_rounded_up_and_what_is_left_down() -> None:
    assert (spent(3.99991), left(4.00009)) == ("4.0000", "4.0000")
    assert (spent(3.00001), left(4.99999)) == ("3.0001", "4.9999")
    assert (number(4.0), number(3.1415), number(1e-5)) == ("4", "3.1415", "1e-5")


SAMPLER = {
    "test_lots": 1000, "units": 600, "sample_rate": 0.0267, "mean_lot": 16.0, "expected_mean_lot": 16.0,
    "lot_variance": 15.0, "expected_lot_variance": 15.6, "p_value": 0.5,
}  # fmt: skip


def _report(**over: Any) -> dict[str, Any]:
    def score(model: str, successes: int) -> dict[str, Any]:
        rate = wilson(successes=successes, n=20).model_dump()
        return {"benchmark": "humaneval", "model": model, "pass_at_1": rate, "outcomes": {}}

    receipt = {
        "plan": plan(), "unit": "one record", "steps_taken": 4, "epsilon_spent": 3.99871, "epsilon_rdp": 4.9,
        "canaries": 5, "sampling_seed": "secret", "sampler": SAMPLER, "trainable_parameters": 57600,
        "signal_to_noise": 0.1,
    }  # fmt: skip
    audit = {
        "injected": True, "canary_rate": 1, "prompts": 16, "samples_per_prompt": 2, "findings": [],
        "leakage": wilson(successes=0, n=5).model_dump(),
    }  # fmt: skip
    return {
        "schema_version": 2,
        "job": {"id": "job_1", "created_at": 1, "recipe": "privcode", "preset": "demo"}, "recipe": "the whole method",
        "rows_of_job": None, "warm_up": None,
        "guarantee": {"covers": "released", "target_epsilon": 4.0, "receipt": receipt, "statement": "a factor of 54.5"},
        "candidates": {
            "funnel": {"candidates": 32, "ran": 19, "described": 18, "kept": 14,
                       "lost": {"no_code": 8, "failed": 5, "below_tau": 4, "no_description": 1}},
            "execution_filter": "exit code 0 says little", "tau": 0.5,
        },
        "quality": [{"benchmark": "humaneval", "base": score("base", 3), "tuned": score("tuned", 2),
                     "statement": "within noise"}],
        "audit": {"result": audit, "statement": "five canaries prove little"},
        "stages": [{"name": "sanitize", "seconds": 82}, {"name": "report", "seconds": 2}],
        "budget": {"epsilon": 8.0, "delta": 1e-5, "epsilon_spent": 3.99871, "epsilon_left": 4.00129},
        "warnings": [{"code": "noise_outweighs_signal", "text": "the noise outweighs the signal"}],
    } | over  # fmt: skip


def test_report_shows_every_figure_with_its_denominator(stub: ApiStub, tmp_path: Path) -> None:
    page = Answer(body=["<p>ε".encode()], content_type="text/html")
    stub.on("GET", "/v1/jobs/job_1/report", page, Answer.json(_report()))
    result = run("report", "job_1", "--html", str(tmp_path / "report.html"))
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "<p>ε"
    for words in ("epsilon 3.9988 at delta 1e-5", "one record", "3.9988 of 8 spent, 4.0012 left",
                  "8 no closed code block", "4 description too far from the prompt",
                  "3 of 20 = 15% (5% to 36%)", "2 of 20 = 10%",
                  "0 of 5 planted secrets found; upper limit 43.4 %", "1:22",
                  "exit code 0 says little", "the noise outweighs the signal"):  # fmt: skip
        assert words in result.stdout, words
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if str(tmp_path) not in line)


def test_a_report_without_figures_is_shown_too() -> None:
    unknown = _report()
    unknown["audit"]["result"] |= {"injected": False, "leakage": wilson(successes=0, n=0).model_dump()}
    unknown["quality"][0]["base"]["pass_at_1"] = wilson(successes=0, n=0, excluded=20).model_dump()
    unknown["candidates"]["funnel"] = {"candidates": 0, "ran": 0, "described": 0, "kept": 0, "lost": {}}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report_view(read_report(unknown)))
    shown = console.export_text()
    assert "no secrets were planted" in shown
    assert "and 20 that could not be run" in shown


def test_the_reports_of_the_service_are_read() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report_view(read_report(json.loads(finished_job().report().model_dump_json()))))
    shown = console.export_text()
    assert "8 no closed code block" in shown
    assert "proves the machinery, not the" in shown
    assert "parses and loads" in shown
    bars = {line.split()[0]: line.count("━") for line in shown.splitlines() if "━" in line}
    assert (bars["candidates"], bars["kept"]) == (28, 12), "14 of 32; readable without colours"


def _shown(report: Report) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report_view(read_report(json.loads(report.model_dump_json()))))
    return console.export_text()


def test_reports_of_recipes_that_protect_nothing_or_a_part_say_so_first() -> None:
    nothing: dict[str, Any] = {
        "label": Label.PRIVATE, "history": history(prompts=None),
        "candidates": None, "executed": None, "scored": None,
    }  # fmt: skip
    unprotected = _shown(finished_job().report(spec=resolve(request_of("nondpft")), receipt=None, **nothing))
    assert "NO PRIVACY GUARANTEE" in unprotected.split("spent by this job")[0]
    assert "nothing: there is no privacy mechanism" in unprotected
    assert "Synthetic code" not in unprotected
    spec = resolve(request_of("jft", privacy={"target_epsilon": 3.1415}))
    partly = _shown(finished_job().report(spec=spec, **nothing))
    assert "DOES NOT COVER" in partly.split("spent by this job")[0]
    assert "epsilon 3.1415 at delta 1e-5" in partly


def test_jobs_and_estimates_without_a_plan(stub: ApiStub, request_file: str) -> None:
    without = job(recipe="nondpft", plan=None, prompts=None)
    stub.on("GET", "/v1/jobs", Answer.json(listing(without)))
    assert "none" in run("jobs").stdout
    stub.on("GET", "/v1/jobs/job_1", Answer.json(without))
    assert "NONE: this recipe has no privacy mechanism" in run("show", "job_1").stdout
    estimate = ESTIMATE | {"plan": None, "epsilon_rdp": None, "signal_to_noise": None, "warnings": ["NO privacy"]}
    stub.on("POST", "/v1/jobs/estimate", Answer.json(estimate))
    shown = run("estimate", request_file).stdout
    assert "NONE" in shown
    assert "57,600 parameters" in shown
    assert "! NO privacy" in shown


def test_a_report_of_another_form_is_a_clear_error() -> None:
    with pytest.raises(PrivCodeError) as failed:
        read_report({"schema_version": 99})
    assert failed.value.code == "unknown_report"

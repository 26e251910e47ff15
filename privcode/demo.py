"""The demo: the whole recipe on the interpreter's own standard library, through the HTTP API, on a stack of its own.

It starts afresh each time, but keeps the converted models, so that a second run has nothing to prepare.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from privcode.cli.home import lock_home
from privcode.cli.report_view import read_report, report_view
from privcode.cli.stack import running_stack
from privcode.cli.stage_board import duration, follow
from privcode.cli.views import dataset_view, estimate_view
from privcode.client import Client
from privcode.demo_data import write_stdlib_archives
from privcode.embedded import EmbeddedStack, open_database
from privcode.states import JobState

# So that problem and solution fit the preset's 256 tokens.
_MAX_SOLUTION_CHARS: Final = 700
_MIN_SOLUTION_CHARS: Final = 60
_MAX_PROBLEM_CHARS: Final = 400

_WELCOME: Final = (
    "A team wants a code model that has learned from its private code, and may not leak it. PrivCode trains a small "
    "junior model under differential privacy, lets it write synthetic code for public prompts, keeps what runs and "
    "answers its prompt, and trains the premium model on that alone. Here the private code is this Python's own "
    "standard library, with five made-up secrets planted in it."
)


def run_demo(home: Path, *, console: Console) -> bool:
    """Run it to its end; False if the job did not succeed.

    Raises :class:`~privcode.errors.PrivCodeError` when ``home`` is in use, the stack fails or the service refuses.
    Only from the main thread.
    """
    started = time.monotonic()
    console.print(Rule(Text("PrivCode demo", style="bold"), style="dim"))
    console.print(Padding(_WELCOME, (0, 2)))
    with lock_home(home):
        _clear(home)
        _heading(console, "1  The service, on this machine")
        with running_stack(home, report=lambda what: console.print(f"  {what}", style="dim")) as stack:
            console.print(f"  ready at {stack.url}")
            succeeded = _run_job(home, stack, console=console)
        console.print(f"  took {duration(time.monotonic() - started)}")
    return succeeded


def _clear(home: Path) -> None:
    """Remove what an earlier demo left; the models stay."""
    _stop_leftover_database(home / "postgres")
    for folder in (home / "postgres", home / "volume" / "artifacts", home / "volume" / "work", home / "logs"):
        if folder.exists():
            shutil.rmtree(folder)
    (home / "credentials.json").unlink(missing_ok=True)


def _stop_leftover_database(folder: Path) -> None:
    """A demo that was killed could not stop its PostgreSQL, which would go on in a removed folder."""
    if (folder / "postmaster.pid").exists():
        open_database(folder).cleanup()


def _run_job(home: Path, stack: EmbeddedStack, *, console: Console) -> bool:
    assert stack.admin_key is not None
    with Client(stack.url, stack.admin_key) as client:
        request = _upload(client, console=console)
        _heading(console, "3  What it would cost")
        with console.status("  calibrating the noise"):
            estimate = client.estimate(request)
        console.print(estimate_view(estimate))
        console.print(
            Padding("A demo of minutes can't average the noise away; watch the machinery, not the scores.", (0, 2))
        )
        job = client.submit(request)
        _heading(console, f"4  The job, {job['id']}")
        follow(client, job, console=console)
        job = client.job(job["id"])
        if job["state"] != JobState.SUCCEEDED:
            error = (
                f"{job['error']['code']}: {job['error']['message']}" if job["error"] else f"the job was {job['state']}"
            )
            console.print(Text(f"  {error}", style="bold red"))
            console.print(f"  logs: {home / 'logs'}", soft_wrap=True)
            console.print(f"  stages' own logs: {home / 'volume' / 'work'}", soft_wrap=True)
            return False
        report = client.report_json(job["id"])
        (home / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (home / "report.html").write_text(client.report_html(job["id"]), encoding="utf-8")
        console.print(report_view(read_report(report)))
        _heading(console, "Where to look on")
        console.print(f"  report   {home / 'report.html'}", soft_wrap=True, style="bold")
        console.print(f"  figures  {home / 'report.json'}", soft_wrap=True)
    return True


def _upload(client: Client, *, console: Console) -> dict[str, str]:
    """Upload both parts of the standard library; returns the job request."""
    _heading(console, "2  The data")
    with (
        tempfile.TemporaryDirectory(prefix="privcode-demo-") as folder,
        console.status("  reading this Python's standard library"),
    ):
        archives = write_stdlib_archives(Path(folder))
        private = client.upload_dataset(
            archives.private,
            name="Python standard library",
            visibility="private",
            format="archive",
            min_solution_chars=_MIN_SOLUTION_CHARS,
            max_solution_chars=_MAX_SOLUTION_CHARS,
            max_problem_chars=_MAX_PROBLEM_CHARS,
        )
        public = client.upload_dataset(
            archives.public,
            name="Other modules of the library, declared public",
            visibility="public",
            format="archive",
            kind="prompts",
            min_solution_chars=_MIN_SOLUTION_CHARS,
            max_solution_chars=_MAX_SOLUTION_CHARS,
            max_problem_chars=_MAX_PROBLEM_CHARS,
        )
    console.print("  Three quarters of the library play the private code:")
    console.print(dataset_view(private))
    console.print("  The rest gives the public prompts:")
    console.print(dataset_view(public))
    return {"preset": "demo", "dataset": private["id"], "prompts": public["id"]}


def _heading(console: Console, title: str) -> None:
    console.print()
    console.print(Rule(Text(title, style="bold"), align="left", style="dim"))

"""The commands. Exit status: 0 done; 1 the job failed or the service refused; 2 wrong usage; 130 interrupted."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from privcode.cli.home import connect, default_home, lock_home
from privcode.cli.report_view import read_report, report_view
from privcode.cli.stage_board import follow
from privcode.cli.views import dataset_view, estimate_view, job_view, jobs_view
from privcode.client import Client
from privcode.client_objects import Job
from privcode.errors import PrivCodeError
from privcode.states import JobState

INTERRUPTED = 130


class _Group(TyperGroup):
    """Shows our errors as one short message on standard error."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PrivCodeError as error:
            show_error(error)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    help="Fine-tune and share code LLMs on private code with differential privacy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Home = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the embedded stack. Clients take PRIVCODE_URL and PRIVCODE_API_KEY where it is not given."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as job_…")]
RequestFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="The job request: a JSON object.", exists=True, dir_okay=False)
]
Follow = Annotated[bool, typer.Option("--follow", help="Stay until the job has ended. Ctrl-C leaves it running.")]


@app.callback()
def main() -> None:
    # Of the database's wheel, about a folder for which it finds another place.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    # A terminal that can't show a sign gets a question mark, not a crash.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def make_console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False)


def show_error(error: PrivCodeError) -> None:
    console = make_console(stderr=True)
    console.print(Text.assemble(("error: ", "bold red"), error.message), soft_wrap=True)
    details = {"code": error.code, "field": error.field, "value": error.value}
    shown = [f"{name} {value!r}" if name == "value" else f"{name} {value}" for name, value in details.items()
             if value is not None]  # fmt: skip
    console.print(Text(f"       {', '.join(shown)}", style="dim"), soft_wrap=True)


@app.command()
def up(home: Home = None, port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8321) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    from privcode.cli.stack import running_stack

    home = (home or default_home()).absolute()
    console = make_console()
    with lock_home(home):
        _require_free(port)
        first = not (home / "credentials.json").exists()
        try:
            with running_stack(home, port=port, report=lambda what: console.print(f"  {what}", style="dim")) as stack:
                console.print(Text.assemble(("PrivCode is ready at ", "bold"), (stack.url, "bold cyan")))
                console.print(f"  home     {home}", soft_wrap=True)
                console.print(f"  API      {stack.url}/docs", soft_wrap=True)
                if first and stack.admin_key:
                    console.print(f"  API key  {stack.admin_key}", soft_wrap=True)
                    console.print("           shown once; this user's privcode commands find it by themselves")
                console.print("  Ctrl-C stops it.", style="dim")
                while True:
                    signal.pause()
        except KeyboardInterrupt:
            console.print("stopped")


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise typer.BadParameter(f"port {port} is in use; choose another", param_hint="--port") from None


@app.command()
def demo(home: Home = None) -> None:
    """The whole pipeline on real code, in about ten minutes."""
    from privcode.demo import run_demo

    console = make_console()
    try:
        succeeded = run_demo((home or default_home() / "demo").absolute(), console=console)
    except KeyboardInterrupt:
        console.print("\ninterrupted; everything has stopped", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
    if not succeeded:
        raise typer.Exit(1)


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)],
    visibility: Annotated[Literal["private", "public"], typer.Option(help="Private rows get a privacy budget.")],
    name: Annotated[str | None, typer.Option(help="Default: the file's name.")] = None,
    format: Annotated[
        Literal["jsonl", "archive"] | None,
        typer.Option(help="Default: by the file's name (.jsonl, .tar.gz, .tgz, .tar)."),
    ] = None,
    kind: Annotated[
        Literal["pairs", "prompts"], typer.Option(help="Problems with solutions, or problems alone.")
    ] = "pairs",
    budget_epsilon: Annotated[float | None, typer.Option(help="The most that all jobs may spend together.")] = None,
    budget_delta: Annotated[float | None, typer.Option()] = None,
    min_solution_chars: Annotated[int | None, typer.Option(help="Archives: shortest function to take.")] = None,
    max_solution_chars: Annotated[int | None, typer.Option(help="Archives: longest function to take.")] = None,
    max_problem_chars: Annotated[int | None, typer.Option(help="Archives: longest problem to take.")] = None,
    unit: Annotated[
        Literal["record", "file"] | None,
        typer.Option(help="Archives: what is protected as one, each function (default) or each source file."),
    ] = None,
    home: Home = None,
) -> None:
    """Upload rows (JSON lines) or a source archive that is mined into pairs."""
    with connect(home, os.environ) as client:
        dataset = client.upload_dataset(
            file,
            name=name or file.name,
            visibility=visibility,
            format=format or _format_of(file),
            kind=kind,
            budget_epsilon=budget_epsilon,
            budget_delta=budget_delta,
            min_solution_chars=min_solution_chars,
            max_solution_chars=max_solution_chars,
            max_problem_chars=max_problem_chars,
            unit=unit,
        )
    make_console().print(dataset_view(dataset))


def _format_of(file: Path) -> Literal["jsonl", "archive"]:
    if file.name.endswith((".tar.gz", ".tgz", ".tar")):
        return "archive"
    if file.suffix == ".jsonl":
        return "jsonl"
    raise typer.BadParameter(f"the name {file.name!r} does not tell the format; give it", param_hint="--format")


@app.command()
def estimate(file: RequestFile, home: Home = None) -> None:
    """What a job would spend. Nothing is stored or reserved."""
    with connect(home, os.environ) as client:
        make_console().print(estimate_view(client.estimate(_read_request(file))))


@app.command()
def submit(file: RequestFile, follow: Follow = False, home: Home = None) -> None:
    """Submit a job; prints its id."""
    console = make_console()
    with connect(home, os.environ) as client:
        job = client.submit(_read_request(file))
        console.print(job["id"])
        for warning in job["warnings"]:
            make_console(stderr=True).print(Text(f"! {warning}", style="yellow"))
        if follow:
            _follow(client, job, console)


def _read_request(file: Path) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        request = json.loads(file.read_bytes(), parse_constant=refuse)
    except ValueError as error:
        raise typer.BadParameter(f"{file} is not JSON: {error}", param_hint="FILE") from None
    if not isinstance(request, dict):
        raise typer.BadParameter(f"{file} holds no JSON object", param_hint="FILE")
    return request


def _follow(client: Client, job: Job, console: Console) -> None:
    try:
        follow(client, job, console=console)
    except KeyboardInterrupt:
        console.print(f"\n{job['id']} goes on without you; `privcode show {job['id']} --follow` comes back to it")
        raise typer.Exit(INTERRUPTED) from None
    ended = client.job(job["id"])
    if ended["error"] is not None:
        show_error(PrivCodeError(ended["error"]["message"], code=ended["error"]["code"]))
    else:
        console.print(f"{ended['id']} {ended['state']}")
    if ended["state"] != JobState.SUCCEEDED:
        raise typer.Exit(1)


@app.command()
def jobs(limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20, home: Home = None) -> None:
    """List jobs, newest first."""
    with connect(home, os.environ) as client:
        found = client.jobs(limit=limit)
    make_console().print(jobs_view(found) if found else "no jobs yet")


@app.command()
def show(job: JobId, follow: Follow = False, home: Home = None) -> None:
    """One job: its state, its stages, its guarantee."""
    console = make_console()
    with connect(home, os.environ) as client:
        found = client.job(job)
        if follow:
            _follow(client, found, console)
        else:
            console.print(job_view(found))


@app.command()
def cancel(job: JobId, home: Home = None) -> None:
    """Stop a job. What it has not spent goes back to the budget."""
    with connect(home, os.environ) as client:
        make_console().print(f"{job} {client.cancel(job)['state']}")


@app.command()
def report(
    job: JobId,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save the HTML report here.")] = None,
    home: Home = None,
) -> None:
    """What a job spent and what came out."""
    console = make_console()
    with connect(home, os.environ) as client:
        if html is not None:
            html.write_text(client.report_html(job), encoding="utf-8")
        found = read_report(client.report_json(job))
    console.print(report_view(found))
    if html is not None:
        console.print(f"\n  saved as {html}", soft_wrap=True)

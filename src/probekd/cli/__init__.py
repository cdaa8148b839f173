"""The command line: parse, call, print. Heavy imports happen inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probekd.cli.cache import cache_app
from probekd.cli.parts import ConfigArgument, JsonOption, ResumeOption, SetOption, TrustOption, print_json, progress_bar
from probekd.cli.students import export, predict, push

if TYPE_CHECKING:
    from probekd.config import RunConfig

app = typer.Typer(
    name="probekd",
    help="Distil what a frozen language model knows, read from its hidden states, into a small fast model.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.add_typer(cache_app, name="cache")

SECTIONS = {
    "extract": "Read",
    "probe": "Fit",
    "label": "Label",
    "distill": "Train",
    "evaluate": "Evaluate",
    "report": "Report",
}


def main() -> None:
    """Entry point: a ProbeKDError becomes one message and exit status 2."""
    from probekd.errors import ProbeKDError

    try:
        app()
    except ProbeKDError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(141)


def _load(path: Path, overrides: list[str] | None) -> RunConfig:
    from probekd.config import load_config

    if path.is_dir():
        return load_config(path / "config.yaml", [f"runs_dir={path.parent}", f"name={path.name}", *(overrides or [])])
    return load_config(path, overrides or [])


def _run(config: RunConfig, *, only: str | None, resume: bool, as_json: bool) -> Path:
    import time

    from rich.console import Console
    from rich.text import Text

    from probekd.run import run_stages

    console = Console(stderr=True)
    began: dict[str, float] = {}

    def say(stage: str, status: str) -> None:
        if status == "running":
            began[stage] = time.monotonic()
        elif not as_json:
            took = "done before" if status == "skipped" else f"done in {time.monotonic() - began[stage]:.0f} s"
            console.print(f"[bold]{stage:<9}[/] {took}", highlight=False)

    try:
        with progress_bar(console) as progress:
            path = run_stages(config, only=only, resume=resume, progress=progress, say=say)
    except KeyboardInterrupt:  # caught here, because typer ends silently when one reaches it
        print("\ninterrupted: what was finished is kept; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    if not as_json:
        for note in record["notes"]:
            console.print(Text.assemble(("note ", "yellow"), note))
    return path


@app.command("run")
def run_command(
    config: ConfigArgument, set_: SetOption = None, resume: ResumeOption = False, as_json: JsonOption = False
) -> None:
    """Run every stage: extract, probe, label, distill, evaluate, report. Finished stages are skipped."""
    path = _run(_load(config, set_), only=None, resume=resume, as_json=as_json)
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    if as_json:
        print_json({"run": str(path), "report": str(path / "report.html"), **metrics})
        return
    from rich.console import Console
    from rich.text import Text

    from probekd.summary import results_table

    console = Console()
    for split in (s for s in metrics if s not in ("comparisons", "gate")):
        console.print(results_table(split, metrics[split], path))
    console.print(
        f"[bold]gate[/]    {metrics['gate']['verdict']}: {metrics['gate']['reason']}", highlight=False, soft_wrap=True
    )
    console.print(Text.assemble(("report", "bold"), f"  {path / 'report.html'}"), soft_wrap=True)


def _run_stage(stage: str, config: RunConfig, *, resume: bool, as_json: bool) -> None:
    path = _run(config, only=stage, resume=resume, as_json=as_json)
    from probekd.summary import print_stage, stage_summary

    print_json(stage_summary(stage, path)) if as_json else print_stage(stage, path)


def _stage_command(stage: str, about: str) -> Callable[..., None]:
    def command(
        config: ConfigArgument, set_: SetOption = None, resume: ResumeOption = False, as_json: JsonOption = False
    ) -> None:
        _run_stage(stage, _load(config, set_), resume=resume, as_json=as_json)

    command.__doc__ = about
    return command


for _name, _about in {
    "extract": "Read the teacher's states of the labelled rows, at every depth.",
    "probe": "Fit the probe, choose where it reads, and judge whether it is worth distilling from.",
}.items():
    app.command(_name)(_stage_command(_name, _about))


@app.command("label")
def label_command(
    config: ConfigArgument,
    set_: SetOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
    export_to: Annotated[
        Path | None,
        typer.Option("--export", help="A new directory for the targets as a dataset, to train on without probekd."),
    ] = None,
) -> None:
    """Read the pool where the probe reads, and write the targets."""
    loaded = _load(config, set_)
    if export_to is None:
        _run_stage("label", loaded, resume=resume, as_json=as_json)
        return
    from probekd.dataset import check_new
    from probekd.run import export_targets

    check_new(export_to)  # before hours of work, not after
    _run(loaded, only="label", resume=resume, as_json=as_json)
    rows = dict(export_targets(loaded, export_to))
    if as_json:
        print_json({"dataset": str(export_to), "rows": rows})
    else:
        print(f"{', '.join(f'{n} rows of {split}' for split, n in rows.items())}: {export_to}")


app.command("distill")(_stage_command("distill", "Train the student and its baselines."))


@app.command("evaluate")
def evaluate_command(
    config: ConfigArgument,
    set_: SetOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
    harness: Annotated[
        bool, typer.Option("--harness", help="Then run the student, a decoder, through lm-eval on the same rows.")
    ] = False,
) -> None:
    """Predict the held-out rows and score everyone."""
    loaded = _load(config, set_)
    if not harness:
        _run_stage("evaluate", loaded, resume=resume, as_json=as_json)
        return
    _run(loaded, only="evaluate", resume=resume, as_json=as_json)
    from dataclasses import asdict

    from rich.console import Console

    from probekd.run import run_harness
    from probekd.summary import print_harness

    with progress_bar(Console(stderr=True)) as progress:
        found = run_harness(loaded, progress=progress)
    if as_json:
        print_json({split: asdict(score) for split, score in found.items()})
    else:
        print_harness(found)


app.command("report")(_stage_command("report", "Write the report page."))


for _student_command in (predict, export, push):
    app.command()(_student_command)


@app.command()
def tasks(
    name: Annotated[
        str | None,
        typer.Argument(help="A built-in task or task file to show; none = list the built-in ones.", show_default=False),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory of the benchmarks' JSONL files.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the built-in tasks, or show one with three rendered prompts."""
    from probekd.summary import print_task, print_tasks, task_list, task_summary

    if name is None:
        print_json(task_list()) if as_json else print_tasks()
        return
    from probekd.tasks import load_task

    task = load_task(name, data_dir=data_dir)
    print_json(task_summary(task)) if as_json else print_task(task)


@app.command()
def estimate(config: ConfigArgument, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Tokens, seconds (from a short measured warm-up) and bytes on disk that a run will take, before it starts."""
    from probekd.estimate import estimate_run, print_estimate

    found = estimate_run(_load(config, set_))
    print_json(found) if as_json else print_estimate(found)


@app.command()
def doctor(
    teacher: Annotated[str, typer.Option(help="A model directory, Hub id or GGUF file.", show_default=False)],
    task: Annotated[str, typer.Option(help="A built-in task or task file; its rows are read.", show_default=False)],
    data_dir: Annotated[Path | None, typer.Option(help="Directory of the benchmarks' JSONL files.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to read.")] = 8,
    gguf: Annotated[Path | None, typer.Option(help="A GGUF file of the teacher, to compare with it.")] = None,
    sibling: Annotated[
        Path | None, typer.Option(help="The safetensors directory that a GGUF teacher was made of.")
    ] = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every way of reading a teacher with plain Transformers; exit status 1 when one must not be used."""
    from rich.console import Console

    from probekd.doctor import examine, print_report
    from probekd.tasks import load_task

    loaded = load_task(task, data_dir=data_dir)
    with progress_bar(Console(stderr=True)) as progress:
        report = examine(
            teacher,
            loaded,
            rows=rows,
            gguf=gguf,
            sibling=sibling,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    print_json(report.as_dict()) if as_json else print_report(report)
    if not report.healthy:
        raise typer.Exit(1)


@app.command("study")
def study_command(
    config: Annotated[Path, typer.Argument(help="The study's YAML file.", show_default=False)],
    set_: SetOption = None,
    only_gather: Annotated[
        bool, typer.Option("--gather", help="Make no cell: only write the results of those that are there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare methods over tasks, label budgets and seeds; goes on where it was, and several processes may help."""
    from rich.console import Console

    from probekd.study import gather_study, load_study, run_study
    from probekd.study.live import board

    study = load_study(config, set_ or [])
    try:
        with board(Console(stderr=True)) as watcher:
            path = gather_study(study, watcher=watcher) if only_gather else run_study(study, watcher=watcher)
    except KeyboardInterrupt:
        print("\ninterrupted: every finished cell is kept; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print((path / "summary.json").read_text(encoding="utf-8"))
    else:
        print(f"results  {path / 'results.md'}\nreport   {path / 'report.html'}")


@app.command()
def schema(
    study: Annotated[bool, typer.Option("--study", help="Of a study's config.")] = False,
) -> None:
    """Print the JSON Schema of a run's config, or of a study's."""
    if study:
        from probekd.study import StudyConfig

        print_json(StudyConfig.model_json_schema())
        return
    from probekd.config import RunConfig

    print_json(RunConfig.model_json_schema())

"""The command line: parse, call, print. Heavy imports happen inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from probekd.config import RunConfig

app = typer.Typer(
    name="probekd",
    help="Distil what a frozen language model knows, read from its hidden states, into a small fast model.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="The cache of teacher states, shared between runs.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

ConfigArgument = Annotated[
    Path, typer.Argument(help="The run's YAML file, or the directory of a run.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as task.labels=100; may be repeated."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on in a run directory that was made with another config.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, for machines.")]

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


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    """A rich progress bar with rate and time left, as the rooms' ``Progress``."""
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="dim")

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Where there is no terminal, rich would print an empty line for the bar that it cannot draw.
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        class Bar:
            def start(self, what: str, total: int, unit: str) -> None:
                self.task = bars.add_task(what, total=total, unit=unit)

            def advance(self, amount: int) -> None:
                bars.advance(self.task, amount)

            def finish(self) -> None:
                bars.remove_task(self.task)

        yield Bar()


def _run(config: RunConfig, *, only: str | None, resume: bool, as_json: bool) -> Path:
    import time

    from rich.console import Console

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
        with _progress(console) as progress:
            path = run_stages(config, only=only, resume=resume, progress=progress, say=say)
    except KeyboardInterrupt:  # caught here, because typer ends silently when one reaches it
        print("\ninterrupted: what was finished is kept; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    if not as_json:
        for note in record["notes"]:
            console.print(f"[yellow]note[/] {note}", highlight=False, markup=True)
    return path


@app.command("run")
def run_command(
    config: ConfigArgument, set_: SetOption = None, resume: ResumeOption = False, as_json: JsonOption = False
) -> None:
    """Run every stage: extract, probe, label, distill, evaluate, report. Finished stages are skipped."""
    path = _run(_load(config, set_), only=None, resume=resume, as_json=as_json)
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    if as_json:
        _print_json({"run": str(path), "report": str(path / "report.html"), **metrics})
        return
    from rich.console import Console

    from probekd.summary import results_table

    console = Console()
    for split in (s for s in metrics if s not in ("comparisons", "gate")):
        console.print(results_table(split, metrics[split], path))
    console.print(
        f"[bold]gate[/]    {metrics['gate']['verdict']}: {metrics['gate']['reason']}", highlight=False, soft_wrap=True
    )
    console.print(f"[bold]report[/]  {path / 'report.html'}", highlight=False, soft_wrap=True)


def _run_stage(stage: str, config: RunConfig, *, resume: bool, as_json: bool) -> None:
    path = _run(config, only=stage, resume=resume, as_json=as_json)
    from probekd.summary import print_stage, stage_summary

    _print_json(stage_summary(stage, path)) if as_json else print_stage(stage, path)


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
    "label": "Read the pool where the probe reads, and write the targets.",
    "distill": "Train the student and its baselines.",
}.items():
    app.command(_name)(_stage_command(_name, _about))


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

    with _progress(Console(stderr=True)) as progress:
        found = run_harness(loaded, progress=progress)
    if as_json:
        _print_json({split: asdict(score) for split, score in found.items()})
    else:
        print_harness(found)


app.command("report")(_stage_command("report", "Write the report page."))


@app.command()
def predict(
    student: Annotated[Path, typer.Argument(help="A student's directory.", show_default=False)],
    input_: Annotated[Path, typer.Option("--input", help="Rows: CSV, JSONL or Parquet.")],
    output: Annotated[
        Path,
        typer.Option("--output", help="Where to write them with their predictions; the suffix decides the format."),
    ],
    question: Annotated[
        str | None, typer.Option(help="Column of the text; default: the first of question, text, sentence, input.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option(help="Column that holds the list of options, or one column an option (repeat).")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the rows of a file with a student."""
    from rich.console import Console

    from probekd.student import predict_file

    columns = options[0] if options and len(options) == 1 else options
    with _progress(Console(stderr=True)) as progress:
        rows = predict_file(
            student, input_, output, question=question, options=columns, overwrite=overwrite, progress=progress
        )
    if as_json:
        _print_json({"rows": rows, "output": str(output)})
    else:
        print(f"{rows} rows predicted: {output}")


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
        _print_json(task_list()) if as_json else print_tasks()
        return
    from probekd.tasks import load_task

    task = load_task(name, data_dir=data_dir)
    _print_json(task_summary(task)) if as_json else print_task(task)


@app.command()
def estimate(config: ConfigArgument, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Tokens, seconds (from a short measured warm-up) and bytes on disk that a run will take, before it starts."""
    from probekd.estimate import estimate_run, print_estimate

    found = estimate_run(_load(config, set_))
    _print_json(found) if as_json else print_estimate(found)


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
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that ships with the checkpoint.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every way of reading a teacher with plain Transformers; exit status 1 when one must not be used."""
    from rich.console import Console

    from probekd.doctor import examine, print_report
    from probekd.tasks import load_task

    loaded = load_task(task, data_dir=data_dir)
    with _progress(Console(stderr=True)) as progress:
        report = examine(
            teacher,
            loaded,
            rows=rows,
            gguf=gguf,
            sibling=sibling,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    _print_json(report.as_dict()) if as_json else print_report(report)
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
        if only_gather:
            path = gather_study(study)
        else:
            with board(Console(stderr=True)) as watcher:
                path = run_study(study, watcher=watcher)
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

        _print_json(StudyConfig.model_json_schema())
        return
    from probekd.config import RunConfig

    _print_json(RunConfig.model_json_schema())


@cache_app.command("ls")
def cache_ls(as_json: JsonOption = False) -> None:
    """List the stored states: size, rows, task, teacher, last use."""
    from probekd.cache import list_stores, print_stores

    stores = list_stores()
    _print_json([s.as_dict() for s in stores]) if as_json else print_stores(stores)


@cache_app.command("verify")
def cache_verify(as_json: JsonOption = False) -> None:
    """Check every stored byte against its checksum; exit status 1 when something is damaged."""
    from probekd.cache import verify_stores

    damaged = verify_stores()
    if as_json:
        _print_json(damaged)
    else:
        for place, files in damaged.items():
            print(f"damaged: {place}: {', '.join(files)}")
        print(f"{len(damaged)} damaged stores" if damaged else "every store is whole")
    if damaged:
        raise typer.Exit(1)


@cache_app.command("gc")
def cache_gc(
    keep: Annotated[
        str, typer.Option(help="Total size to keep, such as 20GB or 0; the least recently used stores go first.")
    ] = "20GB",
    as_json: JsonOption = False,
) -> None:
    """Remove stores until the cache is within a size. Run directories keep their own hold on the states they use."""
    from probekd.cache import collect, parse_size

    removed = collect(parse_size(keep))
    if as_json:
        _print_json([s.as_dict() for s in removed])
    else:
        print(f"{len(removed)} stores removed, {sum(s.bytes for s in removed) / 1e6:,.1f} MB freed")


if __name__ == "__main__":
    main()

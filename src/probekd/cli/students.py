"""Commands that take a student's directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probekd.cli.parts import JsonOption, TrustOption, print_json, progress_bar

if TYPE_CHECKING:
    from probekd.student.onnx import Backend

StudentArgument = Annotated[Path, typer.Argument(help="A student's directory.", show_default=False)]
QuestionOption = Annotated[
    str | None, typer.Option(help="Column of the text; default: the first of question, text, sentence, input.")
]
OptionsOption = Annotated[
    list[str] | None, typer.Option(help="Column that holds the list of options, or one column an option (repeat).")
]


def _columns(options: list[str] | None) -> str | list[str] | None:
    return options[0] if options and len(options) == 1 else options


def _backend(name: str) -> Backend:
    from typing import get_args

    from probekd.errors import ConfigError
    from probekd.student.onnx import Backend

    for known in get_args(Backend):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"--backend {name}: unknown; it is one of {', '.join(get_args(Backend))}")


def _refuse_alone(options: Mapping[str, object]) -> None:
    """Raise ConfigError where an option of the cascade is given without one."""
    from probekd.errors import ConfigError

    if given := [name for name, value in options.items() if value is not None]:
        raise ConfigError(
            f"{given[0]}: the student answers every row without --cascade; add --cascade RUN_DIR, or leave it out"
        )


def predict(
    student: StudentArgument,
    input_: Annotated[Path, typer.Option("--input", help="Rows: CSV, JSONL or Parquet.")],
    output: Annotated[
        Path,
        typer.Option("--output", help="Where to write them with their predictions; the suffix decides the format."),
    ],
    question: QuestionOption = None,
    options: OptionsOption = None,
    backend: Annotated[
        str, typer.Option(help="What computes: torch, or a file that `probekd export` made: onnx, onnx-int8.")
    ] = "torch",
    cascade: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_DIR", help="Rows that the student is not sure of go to this run's teacher and probe."
        ),
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(help="With --cascade: share of the student's answers that must be the probe's; default: 0.95."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="With --cascade: confidence with which they are; default: 0.95.")
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="With --cascade: unlabelled rows to choose the threshold on; default: the validation split."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output file.")] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the rows of a file with a student; with --cascade, with its teacher's probe where it is not sure."""
    from rich.console import Console

    from probekd.student import predict_file

    computing = _backend(backend)
    if cascade is None:
        _refuse_alone({"--agreement": agreement, "--confidence": confidence, "--held-out": held_out})
    with progress_bar(Console(stderr=True)) as progress:
        if cascade is None:
            rows = predict_file(
                student,
                input_,
                output,
                question=question,
                options=_columns(options),
                backend=computing,
                overwrite=overwrite,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
            said, found = f"{rows} rows predicted: {output}", {"rows": rows, "output": str(output)}
        else:
            from probekd.cascade.predict import cascade_file

            rule, by = cascade_file(
                student,
                cascade,
                input_,
                output,
                agreement=0.95 if agreement is None else agreement,
                level=0.95 if confidence is None else confidence,
                held_out=held_out,
                question=question,
                options=_columns(options),
                backend=computing,
                overwrite=overwrite,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
            rows = sum(by.values())
            said = (
                f"{rule}\n{rows} rows predicted, {by['student']} by the student, {by['probe']} by the probe: {output}"
            )
            found = {"rows": rows, "output": str(output), "rule": str(rule), "answered_by": dict(by)}
    print_json(found) if as_json else print(said)


def export(
    student: StudentArgument,
    rows: Annotated[
        Path | None,
        typer.Option(
            "--rows",
            help="Rows like those to come, on which the files are held against the student; default: its run's own.",
        ),
    ] = None,
    question: QuestionOption = None,
    options: OptionsOption = None,
    int8: Annotated[bool, typer.Option("--int8", help="Write a file with 8-bit weights too.")] = False,
    accept_int8: Annotated[
        bool, typer.Option("--accept-int8", help="Write it however far its answers are from the student's.")
    ] = False,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a student as ONNX into its own directory, held against PyTorch before it is kept."""
    from probekd.run import rows_learned
    from probekd.student.model import StudentInfo
    from probekd.student.onnx.export import export_onnx
    from probekd.student.predict import read_examples

    info = StudentInfo.load(student)
    examples = read_examples(info, rows, question, _columns(options)) if rows else rows_learned(student)
    found = export_onnx(student, examples, int8=int8, accept_int8=accept_int8, trust_remote_code=trust_remote_code)
    if as_json:
        print_json({name: parity.as_dict() for name, parity in found.items()})
        return
    for name, parity in found.items():
        print(
            f"{student / 'onnx' / name}: on {parity.rows} rows no probability differs by more than {parity.worst:.1e}, "
            f"and {100 * parity.agreement:.1f}% of the picks are the same"
        )


def push(
    student: StudentArgument,
    repo_id: Annotated[str, typer.Argument(help="Name on the Hub, owner/name.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
) -> None:
    """Upload a student, its card and its ONNX files to the Hugging Face Hub."""
    from probekd.student.push import push_student

    print(push_student(student, repo_id, private=private))

"""Commands that take a student's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probekd.cli.parts import JsonOption, print_json, progress_bar


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
    with progress_bar(Console(stderr=True)) as progress:
        rows = predict_file(
            student, input_, output, question=question, options=columns, overwrite=overwrite, progress=progress
        )
    if as_json:
        print_json({"rows": rows, "output": str(output)})
    else:
        print(f"{rows} rows predicted: {output}")

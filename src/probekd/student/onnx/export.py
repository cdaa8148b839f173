"""Write a student as ONNX into its own directory, after holding what was written against PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from probekd.errors import DataError, ModelError
from probekd.files import replacing, write_json
from probekd.student.inputs import row_batches
from probekd.student.kinds import StudentKind
from probekd.student.model import Student
from probekd.student.onnx import FILES, FOLDER
from probekd.student.onnx.graph import ANSWERS, graph_inputs, write_graph
from probekd.student.onnx.int8 import write_int8
from probekd.student.onnx.parity import EXACT, QUANTISED, Bound, Parity, compare, require
from probekd.student.onnx.runtime import OnnxStudent, open_session
from probekd.tasks.base import Example

# Rows that are compared, and of these token sequences a batch: rows alone and among others of their length.
COMPARED = 200
BATCHES = (1, 32)


def export_onnx(
    directory: str | Path,
    rows: Sequence[Example],
    *,
    int8: bool = False,
    accept_int8: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Parity]:
    """Write ``onnx/model.onnx`` and, with ``int8``, ``onnx/model_int8.onnx`` into a student's directory.

    Both are held against the PyTorch student on real rows of all lengths, alone and in batches, before anything of an
    earlier export is replaced; what was found is in ``onnx/parity.json``. The inputs are the tokenizer's, of shape
    (batch, tokens), or (batch, options, tokens) for a multiple-choice head, any number of each; the output is ``logits``.

    Args:
        directory: A student directory.
        rows: Rows like those to come, at least two; their answers are not looked at.
        int8: Write the file with 8-bit weights too.
        accept_int8: Write it however far it is from the student.
        trust_remote_code: Run Python code that ships with the checkpoint.

    Returns:
        What the comparison found, by file name.

    Raises:
        DataError: fewer than two rows.
        ModelError: a student that cannot be exported, a package of the extra ``onnx`` that is missing, or a file that
            does not answer as the student does; names the worst row.
    """
    student = Student.load(directory, trust_remote_code=trust_remote_code)
    if student.info.student_kind not in ANSWERS:
        raise ModelError(
            f"{directory}: a student of kind {student.info.student_kind!r} cannot be exported to ONNX; these can: "
            f"{', '.join(ANSWERS)}"
        )
    if len(rows) < 2:
        raise DataError(f"{directory}: {len(rows)} rows to export with; give two or more like those to come")
    student.network.cpu()
    rows = spread_over_lengths(student.model, rows, COMPARED)
    plain = student.predict_proba(rows, batch_size=1)

    def check(path: Path, bound: Bound | None, remedy: str, of: slice = slice(None)) -> Parity:
        exported = OnnxStudent(
            info=student.info, ready=student.model, network=open_session(path, student.info.student_kind)
        )
        answers = [exported.predict_proba(rows[of], batch_size=size) for size in BATCHES]
        found = [compare(rows[of], plain[of], answer) for answer in answers]
        if bound is not None:
            for parity in found:
                require(parity, bound, path.name, remedy)
        return max(found, key=lambda parity: parity.mean)

    with replacing(Path(directory) / FOLDER) as unfinished:
        unfinished.mkdir()
        exact, small = unfinished / FILES["onnx"], unfinished / FILES["onnx-int8"]
        write_graph(student.model, student.model.encode(rows[-2:]), exact)
        found = {exact.name: check(exact, EXACT, "keep to the PyTorch student, and report the model")}
        if int8:
            # Half of the rows show what activations are like, and the other half whether that helped.
            write_int8(exact, _batches(student.model, rows[::2]), small)
            bound = None if accept_int8 else QUANTISED
            remedy = "leave --int8 out, or take the file as it is with --accept-int8"
            found[small.name] = check(small, bound, remedy, slice(1, None, 2))
        write_json(unfinished / "parity.json", {name: parity.as_dict() for name, parity in found.items()})
    return found


def spread_over_lengths(kind: StudentKind, rows: Sequence[Example], most: int) -> list[Example]:
    """At most ``most`` rows, from the shortest to the longest in tokens, in even steps."""
    order = np.argsort([row.tokens for row in kind.encode(rows)], kind="stable")
    return [rows[i] for i in order[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]]


def _batches(kind: StudentKind, rows: Sequence[Example]) -> list[dict[str, np.ndarray]]:
    """The rows as the graph takes them."""
    encoded = kind.encode(rows)
    return [
        {name: tensor.numpy() for name, tensor in graph_inputs(kind.collate([encoded[i] for i in batch])).items()}
        for batch in row_batches(encoded, BATCHES[-1])
    ]

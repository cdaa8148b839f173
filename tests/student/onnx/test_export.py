"""Exported students answer as plain Transformers does, and an export that would not is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification, AutoTokenizer

from probekd.config import StudentConfig
from probekd.errors import DataError, ModelError
from probekd.student import Student, distill, predict_file
from probekd.student.backends import open_student
from probekd.student.onnx import export as exporting
from probekd.student.onnx import parity
from probekd.student.onnx.export import export_onnx, spread_over_lengths
from probekd.targets import softmax
from probekd.tasks.base import Example, Task

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
FILES = ["model.onnx", "model_int8.onnx", "parity.json"]


def copy_of(student: Student, directory: Path) -> Path:
    return Path(shutil.copytree(student.directory, directory / "student"))


def long_rows(task: Task) -> list[Example]:
    """Rows longer than any that the graph was traced with, and one of a single word."""
    words = "the big red dog is seen here and the old saw too "
    return [
        Example(id=f"long{n}", question=(words * 4)[: 9 * n] or "dog", options=task.labels or ("a dog", "saw"))
        for n in (0, 3, 7, 15)
    ]


@pytest.fixture(scope="module")
def exported(
    kinds: Task, which: Task, kinds_student: Student, which_student: Student, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Directories of the two students with both files."""
    found = {}
    for task, student in ((kinds, kinds_student), (which, which_student)):
        found[task.name] = copy_of(student, tmp_path_factory.mktemp(task.name))
        export_onnx(found[task.name], task.rows("train"), int8=True, accept_int8=True)
    return found


@pytest.mark.slow
def test_a_classifier_answers_as_the_plain_model_row_by_row(kinds: Task, exported: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported["kinds"])
    model = AutoModelForSequenceClassification.from_pretrained(exported["kinds"]).eval()
    rows = [*kinds.rows("test"), *long_rows(kinds)]
    student = open_student(exported["kinds"], "onnx")
    for batch_size in (1, 7, 64):
        for row, probs in zip(rows, student.predict_proba(rows, batch_size=batch_size), strict=True):
            with torch.no_grad():
                logits = model(**tokenizer(row.question, return_tensors="pt")).logits[0]
            np.testing.assert_allclose(probs, torch.softmax(logits / student.info.temperature, -1).numpy(), atol=1e-5)


def test_multiple_choice_answers_as_the_plain_model_row_by_row(which: Task, exported: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported["which"])
    model = AutoModelForMultipleChoice.from_pretrained(exported["which"]).eval()
    rows = [*which.rows("test"), *long_rows(which)]
    student = open_student(exported["which"], "onnx")
    for batch_size in (1, 64):
        for row, probs in zip(rows, student.predict_proba(rows, batch_size=batch_size), strict=True):
            pairs = tokenizer([row.question] * len(row.options), row.options, padding=True, return_tensors="pt")
            with torch.no_grad():
                logits = model(**{name: tensor[None] for name, tensor in pairs.items()}).logits[0]
            np.testing.assert_allclose(probs, torch.softmax(logits / student.info.temperature, -1).numpy(), atol=1e-5)


def test_the_file_is_usable_without_probekd(which: Task, exported: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(exported["which"] / "onnx" / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(exported["which"])
    shapes = {entry.name: entry.shape for entry in (*session.get_inputs(), *session.get_outputs())}
    assert shapes.pop("logits") == ["batch", "options"]
    assert set(shapes) == {"input_ids", "token_type_ids", "attention_mask"}
    assert all(shape == ["batch", "options", "tokens"] for shape in shapes.values())
    row = which.rows("test")[0]
    pairs = tokenizer([row.question] * len(row.options), row.options, padding=True, return_tensors="np")
    (logits,) = session.run(["logits"], {name: values[None] for name, values in pairs.items()})
    student = Student.load(exported["which"])
    (probs,) = student.predict_proba([row])
    np.testing.assert_allclose(softmax(logits[0] / student.info.temperature), probs, atol=1e-5)


def test_both_files_predict_a_file(kinds: Task, exported: dict[str, Path], tmp_path: Path) -> None:
    rows = kinds.rows("test")
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": e.question}) + "\n" for e in rows))
    found = {}
    for backend in ("torch", "onnx", "onnx-int8"):
        out = tmp_path / f"{backend}.jsonl"
        assert predict_file(exported["kinds"], source, out, backend=backend) == len(rows)
        found[backend] = np.array([json.loads(line)["probs"] for line in out.read_text().splitlines()])
    np.testing.assert_allclose(found["onnx"], found["torch"], atol=1e-5)
    np.testing.assert_allclose(found["onnx-int8"], found["torch"], atol=0.3)
    assert not np.allclose(found["onnx-int8"], found["onnx"], atol=1e-6)


def test_what_was_compared_is_kept_beside_the_files(exported: dict[str, Path]) -> None:
    folder = exported["kinds"] / "onnx"
    assert sorted(f.name for f in folder.iterdir()) == FILES
    found = json.loads((folder / "parity.json").read_text())
    assert set(found) == set(FILES[:2])
    assert found["model.onnx"]["agreement"] == 1 and found["model.onnx"]["worst"] < 1e-5
    # Half of the rows showed the activations' ranges, and the others were compared.
    assert (found["model.onnx"]["rows"], found["model_int8.onnx"]["rows"]) == (48, 24)
    assert found["model_int8.onnx"]["worst"] > found["model.onnx"]["worst"]


def test_a_decoder_with_a_head_is_exported(tiny_gpt2: Path, kinds: Task, tmp_path: Path) -> None:
    config = StudentConfig(model=str(tiny_gpt2), label_epochs=1)
    student = distill(tiny_gpt2, kinds, None, method="labels", config=config, output_dir=tmp_path / "student")
    export_onnx(student.directory, kinds.rows("train"))
    rows = [*kinds.rows("test"), *long_rows(kinds)]
    answers = open_student(student.directory, "onnx").predict_proba(rows)
    for probs, plain in zip(answers, student.predict_proba(rows, batch_size=1), strict=True):
        np.testing.assert_allclose(probs, plain, atol=1e-5)


@pytest.mark.parametrize("name", ["kinds", "which"])
def test_a_static_student_is_exported(
    name: str, kinds: Task, which: Task, config: StudentConfig, tmp_path: Path
) -> None:
    task = kinds if name == "kinds" else which
    static = config.model_copy(update={"kind": "static"})
    student = distill(static.model, task, None, method="labels", config=static, output_dir=tmp_path / "student")
    export_onnx(student.directory, task.rows("train"))
    rows = [*task.rows("test"), *long_rows(task)]
    answers = open_student(student.directory, "onnx").predict_proba(rows)
    for probs, plain in zip(answers, student.predict_proba(rows, batch_size=1), strict=True):
        np.testing.assert_allclose(probs, plain, atol=1e-5)


def test_a_kind_without_a_graph_is_refused(
    kinds: Task, kinds_student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ANSWERS", {"static": None})
    with pytest.raises(ModelError, match=r"of kind 'head' cannot be exported to ONNX; these can: static"):
        export_onnx(copy_of(kinds_student, tmp_path), kinds.rows("train"))


def test_a_graph_that_answers_otherwise_is_refused_and_the_last_export_stays(
    kinds: Task, exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(exported["kinds"], tmp_path / "student"))
    before = {f.name: f.read_bytes() for f in (directory / "onnx").iterdir()}

    def write_with_another_bias(kind: Any, rows: Any, path: Path) -> None:
        model = onnx.load(exported["kinds"] / "onnx" / "model.onnx")
        (bias,) = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [3]]
        bias.CopyFrom(onnx.numpy_helper.from_array(np.array([0.1, 0, 0], dtype=np.float32), bias.name))
        onnx.save(model, path)

    monkeypatch.setattr(exporting, "write_graph", write_with_another_bias)
    with pytest.raises(ModelError, match=r"model\.onnx does not answer.*on row 'train\d-\d+'.*nothing was written"):
        export_onnx(directory, kinds.rows("train"))
    assert {f.name: f.read_bytes() for f in (directory / "onnx").iterdir()} == before


def test_int8_too_far_from_the_student_is_refused_unless_accepted(
    kinds: Task, kinds_student: Student, exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = copy_of(kinds_student, tmp_path)
    written = exported["kinds"] / "onnx" / "model.onnx"
    monkeypatch.setattr(exporting, "write_graph", lambda kind, rows, path: shutil.copy(written, path))
    monkeypatch.setattr(exporting, "QUANTISED", parity.Bound(worst=1.0, mean=1e-9, agreement=0.9))
    with pytest.raises(ModelError, match=r"model_int8\.onnx does not answer.*at most 1e-09.*--accept-int8"):
        export_onnx(directory, kinds.rows("train"), int8=True)
    assert not (directory / "onnx").exists()
    export_onnx(directory, kinds.rows("train"), int8=True, accept_int8=True)
    assert sorted(f.name for f in (directory / "onnx").iterdir()) == FILES


def test_rows_of_all_lengths_are_compared(kinds: Task, kinds_student: Student) -> None:
    rows = kinds.rows("train")
    lengths = [row.tokens for row in kinds_student.model.encode(spread_over_lengths(kinds_student.model, rows, 5))]
    every = sorted(row.tokens for row in kinds_student.model.encode(rows))
    assert lengths == [every[i] for i in (0, 11, 23, 35, 47)]
    assert len(spread_over_lengths(kinds_student.model, rows[:3], 5)) == 3


def test_what_is_missing_is_named(
    kinds: Task, kinds_student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"model_int8\.onnx: no such file; write it with  probekd export .* --int8"):
        open_student(kinds_student.directory, "onnx-int8")
    with pytest.raises(DataError, match="1 rows to export with"):
        export_onnx(kinds_student.directory, kinds.rows("train")[:1])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelError, match=r"needs the package onnxscript: pip install 'probekd\[onnx\]'"):
        export_onnx(kinds_student.directory, kinds.rows("train"))
    assert not (kinds_student.directory / "onnx").exists()


def test_a_damaged_file_is_named(exported: dict[str, Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(exported["kinds"], tmp_path / "student"))
    (directory / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        open_student(directory, "onnx")


def test_eight_bits_of_a_network_whose_blocks_share_their_weights(
    kinds: Task, tiny_albert: Path, tmp_path: Path
) -> None:
    config = StudentConfig(
        model=str(tiny_albert), learning_rate=3e-3, batch_size=8, label_epochs=4, early_stopping=None
    )
    distill(tiny_albert, kinds, None, method="labels", config=config, output_dir=tmp_path / "s")
    found = export_onnx(tmp_path / "s", kinds.rows("train"), int8=True)
    assert found["model_int8.onnx"].mean < 0.02
    sizes = [(tmp_path / "s" / "onnx" / name).stat().st_size for name in FILES[:2]]
    assert sizes[1] < sizes[0]

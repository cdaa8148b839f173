from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from probekd.student import Student
from probekd.student.inputs import Encoded
from probekd.student.kinds.base import present_options
from probekd.tasks.base import Task


def test_students_from_before_there_were_kinds_have_a_head(kinds: Task, kinds_student: Student, tmp_path: Path) -> None:
    directory = tmp_path / "student"
    shutil.copytree(kinds_student.directory, directory)
    record = json.loads((directory / "probekd.json").read_text())
    assert record.pop("student_kind") == "head"
    (directory / "probekd.json").write_text(json.dumps(record))
    test = kinds.rows("test")
    pairs = zip(Student.load(directory).predict_proba(test), kinds_student.predict_proba(test), strict=True)
    assert all((a == b).all() for a, b in pairs)


def test_present_options() -> None:
    rows = [Encoded(sequences=(), options=k, cut=False) for k in (2, 4, 1)]
    expected = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert torch.equal(present_options(rows), torch.tensor(expected))

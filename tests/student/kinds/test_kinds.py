from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from probekd.config import StudentConfig
from probekd.errors import ConfigError
from probekd.student import Student, distill
from probekd.student.inputs import Encoded
from probekd.student.kinds import KINDS
from probekd.student.kinds.base import present_options
from probekd.tasks.base import Task


def test_a_kind_that_is_not_there_is_refused(kinds: Task, config: StudentConfig) -> None:
    for name in {"static"} - set(KINDS):
        absent = config.model_copy(update={"kind": name})
        with pytest.raises(ConfigError, match=rf"student\.kind: '{name}' is not there yet; take one of head"):
            distill(config.model, kinds, None, method="labels", config=absent)


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

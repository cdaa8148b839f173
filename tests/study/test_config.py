from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from probekd.errors import ConfigError
from probekd.study.config import load_study, student_label

VALUES: dict[str, Any] = {
    "tasks": ["arc_easy", {"name": "mmlu", "test": 1000}],
    "teachers": ["models/teacher"],
    "students": [{"model": "models/small", "kind": "static"}],
    "methods": ["labels", "probe-kd"],
    "budgets": [100, 300],
}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "breadth.yaml"
    path.write_text(yaml.safe_dump({**VALUES, **changes}), encoding="utf-8")
    return path


def test_names_stand_for_sections(tmp_path: Path) -> None:
    study = load_study(written(tmp_path), ["rows=50", "search.alpha=[0]"])
    assert (study.name, study.rows, study.search.alpha) == ("breadth", 50, (0.0,))
    assert [(t.label, t.test) for t in study.tasks] == [("arc_easy", None), ("mmlu", 1000)]
    assert student_label(study.students[0]) == "small static"
    assert study.directory == Path("studies/results/breadth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["labels", "labels"]}, "methods: labels is named twice"),
        ({"methods": ["probe"]}, "methods.0: Input should be 'labels'"),
        ({"tasks": []}, "at least 1 item"),
        ({"tasks": ["a.yaml", "b/a.yaml"]}, "tasks: a is named twice"),
        ({"students": [{"model": "m", "method": "labels"}]}, "students: remove method"),
        (
            {"tasks": [{"name": "arc_easy", "labls": 3}]},
            "unknown key 'tasks.0.labls'; known keys: name, data_dir, subjects, test, prompt",
        ),
        ({"students": [{"model": "m", "batch": 3}]}, "unknown key 'students.0.batch'; did you mean 'batch_size'?"),
        ({"search": {"l3": [1]}}, "unknown key 'search.l3'; did you mean 'l2'?"),
        ({"pool": [-1]}, "pool.0"),
    ],
)
def test_what_is_wrong_is_said_with_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError, match=r"breadth\.yaml") as error:
        load_study(path)
    assert message in str(error.value)

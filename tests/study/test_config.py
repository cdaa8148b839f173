from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from probekd.config import StudentConfig
from probekd.errors import ConfigError
from probekd.study.config import load_study

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
    assert study.students[0].label == "small static"
    assert study.directory == Path("studies/results/breadth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["labels", "labels"]}, "methods: labels is named twice"),
        ({"methods": ["probe_kd"]}, "methods.0: Input should be 'labels'"),
        ({"methods": ["probe_kd"]}, "(found 'probe_kd'); did you mean 'probe-kd'?"),
        ({"methods": ["labels", "self-train"], "pool": [0]}, "breadth.yaml: methods: self-train needs a pool"),
        ({"tasks": []}, "at least 1 item"),
        ({"tasks": ["a.yaml", "b/a.yaml"]}, "tasks: a is named twice"),
        (
            {"students": [{"model": "m", "method": "labels"}]},
            "students.0: remove method; the study's methods say what is trained",
        ),
        (
            {"students": [{"model": "m", "temperature": 4}]},
            "students.0: remove temperature; the study's search says which of it are tried",
        ),
        ({"search": {"alpha": []}}, "search.alpha: Tuple should have at least 1 item"),
        ({"search": {"temperature": [float("inf")]}}, "search.temperature.0: Input should be a finite number"),
        ({"search": {"learning_rate": []}}, "search.learning_rate: Tuple should have at least 1 item"),
        ({"pool": []}, "pool: Tuple should have at least 1 item"),
        ({"seeds": []}, "seeds: Tuple should have at least 1 item"),
        ({"seeds": [-1]}, "seeds.0: Input should be greater than or equal to 0"),
        (
            {"teachers": [{"model": "models/teacher", "on_long": "drop"}]},
            "teachers: teacher has on_long: drop, and a study's rows are the same for every teacher",
        ),
        (
            {"tasks": [{"name": "arc_easy", "labls": 3}]},
            "unknown key 'tasks.0.labls'; known keys: name, data_dir, subjects, test, prompt",
        ),
        ({"students": [{"model": "m", "batch": 3}]}, "unknown key 'students.0.batch'; did you mean 'batch_size'?"),
        (
            {"students": [{"model": "m", "kind": "cut", "epochs": 0}]},
            "students.0: kind: cut is made of one run's teacher",
        ),
        (
            {"students": [{"model": "m"}, {"model": "m", "max_length": 32}]},
            "students: m head is named twice; give each a name of its own",
        ),
        ({"students": [{"model": "m"}, {"model": "m", "name": "n"}]}, "differ in their name alone"),
        ({"search": {"l3": [1]}}, "unknown key 'search.l3'; did you mean 'l2'?"),
        ({"pool": [-1]}, "pool.0"),
    ],
)
def test_what_is_wrong_is_said_with_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError, match=r"breadth\.yaml") as error:
        load_study(path)
    assert message in str(error.value)
    # One line a problem (or a way to put it right), and never the whole section, which would bury it.
    assert len(str(error.value).splitlines()) == (2 if message == "pool.0" else 1)
    assert "found {" not in str(error.value)


def test_a_name_tells_variants_apart_and_is_no_part_of_what_a_student_is(tmp_path: Path) -> None:
    student = {"model": "models/small", "kind": "head"}
    study = load_study(written(tmp_path, students=[student, {**student, "name": "long", "max_length": 512}]))
    assert [s.label for s in study.students] == ["small head", "long"]
    # Cells are found by these bytes (workshop.key): other ones would have every cell trained again.
    assert study.students[0].model_dump_json(exclude={"name"}) == StudentConfig(**student).model_dump_json()

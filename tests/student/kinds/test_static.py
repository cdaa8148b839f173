from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from probekd.config import StudentConfig
from probekd.errors import ModelError
from probekd.student import Student, distill, frozen_embeddings
from probekd.student.projection import fit_projection
from probekd.targets import SoftTargets
from probekd.tasks.base import Task


@pytest.fixture(scope="module")
def static(config: StudentConfig) -> StudentConfig:
    return config.model_copy(update={"kind": "static"})


@pytest.fixture(scope="module")
def students(kinds: Task, which: Task, static: StudentConfig) -> dict[str, Student]:
    return {t.kind: distill(static.model, t, None, method="labels", config=static) for t in (kinds, which)}


def accuracy(student: Student, task: Task) -> float:
    rows = task.rows("test")
    return float(np.mean([p.argmax() == e.answer for p, e in zip(student.predict_proba(rows), rows, strict=True)]))


def test_a_random_encoders_embedding_teaches_what_words_are(
    students: dict[str, Student], kinds: Task, which: Task
) -> None:
    assert accuracy(students["classification"], kinds) > 0.6
    assert len({len(p) for p in students["multiple_choice"].predict_proba(which.rows("test"))}) == 3


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_the_encoder_is_left_as_it_was_and_loads_by_itself(
    students: dict[str, Student], kind: str, tiny_bert: Path
) -> None:
    directory = students[kind].directory
    before, after = (AutoModel.from_pretrained(place).state_dict() for place in (tiny_bert, directory))
    for name, tensor in after.items():
        if "pooler" not in name:
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_the_cards_code_answers_as_the_student_does(
    students: dict[str, Student], kinds: Task, which: Task, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    student = students[kind]
    task = kinds if kind == "classification" else which
    row = next(e for e in task.rows("test") if kind == "classification" or len(e.options) == 2)
    code = student.model.usage.replace("path/to/this/directory", str(student.directory))
    code = code.replace("some text", row.question).replace("some question", row.question)
    code = code.replace("one option", row.options[0]).replace("another option", row.options[1])
    exec(compile(code, "usage", "exec"), {})
    said = capsys.readouterr().out.strip()
    best = int(student.predict_proba([row])[0].argmax())
    assert said == (f"tensor([{best}])" if kind == "classification" else row.options[best])


def test_the_same_rows_give_the_same_bytes(kinds: Task, static: StudentConfig, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        distill(static.model, kinds, None, method="labels", config=static, output_dir=place)
    assert len({(place / "head.safetensors").read_bytes() for place in places}) == 1


def test_it_learns_the_pool_from_soft_targets(kinds: Task, static: StudentConfig, students: dict[str, Student]) -> None:
    few = {e.id for e in kinds.rows("train")[::8]}
    task = Task(
        name="few",
        kind="classification",
        labels=kinds.labels,
        splits={
            "train": tuple(e for e in kinds.rows("train") if e.id in few),
            "unlabelled": tuple(kinds.rows("unlabelled")),
            "test": tuple(kinds.rows("test")),
        },
    )
    rows = task.rows("train", "unlabelled")
    gold = [int(e.id.split("-")[0][-1]) for e in rows]
    targets = SoftTargets(
        ids=tuple(e.id for e in rows),
        splits=tuple("unlabelled" if e.answer is None else "train" for e in rows),
        logits=tuple(3.0 * np.eye(3)[g] for g in gold),
        sources=("pooled",) * len(rows),
        folds=(-1,) * len(rows),
    )
    alone = distill(static.model, task, None, method="labels", config=static)
    taught = distill(static.model, task, targets, method="probe-kd", config=static)
    assert accuracy(taught, task) > accuracy(alone, task) + 0.1
    assert (taught.info.num_pool_rows, taught.info.student_kind) == (len(kinds.rows("unlabelled")), "static")


def test_validation_rows_choose_the_strength(kinds: Task, static: StudentConfig) -> None:
    train, test = kinds.splits["train"], kinds.splits["test"]
    # Validation answers that are all wrong want a head that knows nothing.
    wrong = tuple(
        type(e)(id=f"v{e.id}", question=e.question, options=e.options, answer=(e.answer + 1) % 3) for e in train
    )  # type: ignore[operator]
    right = tuple(type(e)(id=f"v{e.id}", question=e.question, options=e.options, answer=e.answer) for e in train)
    scales = []
    for validation in (right, wrong):
        task = Task(
            name="v",
            kind="classification",
            labels=kinds.labels,
            splits={"train": train, "validation": validation, "test": test},
        )
        student = distill(static.model, task, None, method="labels", config=static)
        scales.append(float(student.network.head.weight.detach().norm()))
        assert student.info.calibration is not None and student.info.calibration.rows == "validation"
    assert scales[0] > 3 * scales[1]


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_hidden_states_are_read_through_the_embedding(
    students: dict[str, Student], kinds: Task, which: Task, static: StudentConfig, kind: str
) -> None:
    """States of one dimension: what the head says of a text depends on the state that its embedding predicts alone."""
    task = kinds if kind == "classification" else which
    rows = task.rows("train", "unlabelled")
    vectors = frozen_embeddings(static.model, rows, task.kind, config=static)
    draw = np.random.default_rng(0).normal(size=(vectors.shape[2], 1))
    shape = -1 if kind == "classification" else (-1, 1)
    states = {e.id: (v @ draw)[: len(e.options)].reshape(shape) for e, v in zip(rows, vectors, strict=True)}
    student = distill(static.model, task, None, hidden=states, method="hidden-kd", config=static)
    projection = fit_projection(vectors, [states[e.id] for e in rows])
    weight = student.network.head.weight.detach().numpy()  # (K, d)
    assert np.linalg.matrix_rank(weight, tol=1e-5 * np.abs(weight).max()) == 1
    for row in weight:
        assert abs(np.corrcoef(row, projection.weight[:, 0])[0, 1]) > 1 - 1e-6
    assert not np.allclose(weight, students[kind].network.head.weight.detach().numpy(), atol=1e-3)


def test_what_it_cannot_do_is_refused(students: dict[str, Student], tmp_path: Path) -> None:
    shutil.copytree(students["classification"].directory, tmp_path / "s")
    shutil.copy(students["multiple_choice"].directory / "head.safetensors", tmp_path / "s")
    with pytest.raises(ModelError, match="not the head of this student"):
        Student.load(tmp_path / "s")

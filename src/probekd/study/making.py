"""Making the cells of one draw: the readers, the gate, and every student by every method."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from probekd.evaluation.gate import Gate, judge
from probekd.methods import RECIPES, Evidence, View, student_view, views_of
from probekd.methods.hidden import HiddenPlace
from probekd.study.kept import load_trained, save_trained
from probekd.study.learners import Learner, Lesson, Trained
from probekd.study.plan import READERS, Cell, Draw
from probekd.study.readings import Reading, teacher_tokens
from probekd.study.records import record
from probekd.study.workshop import Workshop
from probekd.targets import softmax
from probekd.tasks.base import Example
from probekd.tasks.variants import variant_keys


def make_cells(shop: Workshop, draw: Draw) -> None:
    """Make the cells of a draw that are missing; the caller holds the draw."""
    missing = shop.missing(draw)
    shop.watcher.began(f"{draw.words}: probes and readouts")
    reading = shop.reading(draw)
    for cell in (c for c in missing if not c.student):
        _write(shop, cell, _reader_record(shop, cell, reading))
    for student in dict.fromkeys(c.student for c in missing if c.student):
        group = Group(shop, draw, student, reading)
        for cell in (c for c in missing if c.student == student):
            shop.watcher.began(f"{draw.words}: {cell.method} ({student})")
            _write(shop, cell, group.record(cell))


def _write(shop: Workshop, cell: Cell, value: dict[str, Any]) -> None:
    shop.directory.write(cell, shop.key(cell), value)
    shop.watcher.made(cell, value["scores"]["accuracy"])


def _reader_record(shop: Workshop, cell: Cell, reading: Reading) -> dict[str, Any]:
    """What the probe, or the best output readout, scores itself."""
    assert cell.method in READERS
    test = shop.universe(cell.draw.task).task.rows("test")
    probs = [softmax(row[: len(e.options)]) for row, e in zip(reading.test[cell.method], test, strict=True)]
    tokens = {"labelled": reading.summary["tokens"]["labelled"]}
    return record(
        cell.settings(),
        probs,
        _answers(test),
        out_of_fold=reading.summary[cell.method],
        teacher_tokens=tokens["labelled"],
    )


@dataclass(frozen=True)
class Group:
    """The cells of one student in one draw.

    Attributes:
        shop: Where things are.
        draw: The draw.
        student: Label of the student.
        reading: What the teacher says of the draw.
    """

    shop: Workshop
    draw: Draw
    student: str
    reading: Reading

    @cached_property
    def learner(self) -> Learner:
        """The student."""
        return self.shop.learner(self.draw.task, self.student)

    @cached_property
    def reads_options(self) -> bool:
        """Whether the student has a state for each option of a row."""
        return self.shop.reads_options(self.draw.task, self.student)

    @cached_property
    def test(self) -> list[Example]:
        """Rows that are tested on."""
        return self.shop.universe(self.draw.task).task.rows("test")

    @cached_property
    def evidence(self) -> Evidence:
        """Rows and views: the teacher's, and the student's own."""
        evidence = self.shop.evidence(self.draw, self.reading)
        views = {**evidence.views, "student_alone": self.learner.alone(evidence)}
        evidence = replace(evidence, views=views)
        if "student" in views_of(self.shop.study.methods) and evidence.pool:
            evidence = replace(evidence, views={**views, "student": self._said_of_pool(evidence)})
        return evidence

    def _said_of_pool(self, evidence: Evidence) -> View:
        """The pool as a student trained on the labels sees it."""
        return student_view(evidence.labelled, self.labels_student.probs[len(self.test) :], evidence.width)

    @cached_property
    def labels_student(self) -> Trained:
        """The student of ``labels``, asked about the test rows and then the pool; kept, since training may be dear."""
        cell = Cell(draw=self.draw, student=self.student, method="labels", pool=0)
        place = self.shop.directory.place("labels", self.shop.key(cell))
        pool = self.shop.evidence(self.draw, self.reading).pool
        if not place.is_dir():
            save_trained(place, self._timed(self._lesson(cell), [*self.test, *pool]))
        return load_trained(place)

    @cached_property
    def gate(self) -> Gate:
        """The verdict before any student is trained."""
        views = {"probe": "probe", "teacher_output": "output_calibrated", "student_alone": "student_alone"}
        evidence, probe = self.evidence, self.shop.study.probe
        scored = np.flatnonzero(evidence.folds >= 0)
        probs = {
            who: [softmax(evidence.views[name].honest[i][: len(evidence.labelled[i].options)]) for i in scored]  # type: ignore[index]
            for who, name in views.items()
        }
        gate, _ = judge(
            probs,
            evidence.answers[scored].tolist(),
            folds=probe.folds,
            resamples=probe.bootstrap,
            seed=self.draw.seed,
            unchecked=len(evidence.labelled) - len(scored),
            groups=np.array(variant_keys(evidence.labelled))[scored].tolist(),
        )
        return gate

    def record(self, cell: Cell) -> dict[str, Any]:
        """Train and test the student of a cell."""
        recipe = RECIPES[cell.method]  # type: ignore[index]
        lesson = self._lesson(cell)
        gate = self.gate  # like the evidence it is of the draw, and no cell's cost
        if cell.method == "labels":
            found = self.labels_student
            found = replace(found, probs=found.probs[: len(self.test)])
        else:
            found = self._timed(lesson, self.test)
        if "student" in recipe.views:
            first = self.labels_student
            found = replace(found, steps=found.steps + first.steps, seconds=found.seconds + first.seconds)
        pool = lesson.evidence.pool
        return record(
            cell.settings(),
            found.probs,
            _answers(self.test),
            pool_rows=len(pool),
            target_accuracy=self._target_accuracy(lesson),
            **found.search(),
            validation_rows=len(lesson.validation),
            teacher_tokens=teacher_tokens(self.reading, recipe.views, len(pool), hidden=recipe.hidden),
            gate=gate.as_dict(),
            seconds=round(found.seconds, 2),
        )

    def _timed(self, lesson: Lesson, asked: Sequence[Example]) -> Trained:
        began = time.monotonic()
        found = self.learner.learn(lesson, asked)
        return replace(found, seconds=time.monotonic() - began)

    def _lesson(self, cell: Cell) -> Lesson:
        recipe = RECIPES[cell.method]  # type: ignore[index]
        whole = self.evidence if recipe.views else self.shop.evidence(self.draw, self.reading)
        rows = len(whole.pool) if cell.pool == "all" else min(cell.pool, len(whole.pool))
        where = self.reading.summary["hidden"].get("options" if self.reads_options else "row")
        source = self.shop.source(self.draw)
        return Lesson(
            name=cell.method,
            recipe=recipe,
            evidence=whole.first(rows),
            validation=self.shop.universe(self.draw.task).chooses(self.draw.budget, self.shop.study.search.rows),
            hidden=lambda rows: HiddenPlace(**where).by_row(source.states, rows),
            seed=self.draw.seed,
        )

    def _target_accuracy(self, lesson: Lesson) -> float | None:
        """How often the pool's targets name the gold option, which no method sees; None without a pool that is told."""
        gold = self.shop.universe(self.draw.task).answers
        targets = lesson.recipe.make(lesson.evidence).by_id()
        pool = [e for e in lesson.evidence.pool if e.id in targets and e.id in gold]
        return float(np.mean([int(targets[e.id].argmax()) == gold[e.id] for e in pool])) if pool else None


def _answers(rows: Sequence[Example]) -> list[int]:
    return [e.answer for e in rows if e.answer is not None]

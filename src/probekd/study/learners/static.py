"""The ``static`` student in a study: embeddings are made once for all cells, and a cell is a few convex problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probekd.config import ProbeConfig, StudentConfig
from probekd.methods import View, padded, widest
from probekd.methods.views import Evidence
from probekd.probes.alone import fit_alone
from probekd.probes.calibrate import fit_temperature, gold_losses
from probekd.student.lessons import Lesson as RowLesson
from probekd.student.lessons import gold_lessons, soft_lessons
from probekd.student.linear import LinearRows, answer_rows
from probekd.student.projection import fit_projection
from probekd.study.config import SearchConfig
from probekd.study.learners.base import Lesson, Trained, Tried
from probekd.targets import labelled_logits, softmax
from probekd.tasks.base import Example


@dataclass(frozen=True, kw_only=True)
class StaticLearner:
    """Linear heads on embeddings.

    Attributes:
        vectors: (1, d) or (k, d) of every row by id.
        config: The student's; ``alpha`` is the search's.
        search: What is tried.
        probe: Folds and strengths of the student alone.
    """

    vectors: Mapping[str, np.ndarray]
    config: StudentConfig
    search: SearchConfig
    probe: ProbeConfig

    def learn(self, lesson: Lesson, asked: Sequence[Example]) -> Trained:
        """See ``Learner``."""
        evidence = lesson.evidence
        vectors = self._matched(lesson) if lesson.recipe.hidden else self.vectors
        rows = (*evidence.labelled, *evidence.pool)
        learning = LinearRows.of(_stacked(vectors, rows), _counts(rows))
        answers = np.array([e.answer for e in lesson.validation])
        tried: list[tuple[Tried, np.ndarray]] = []
        for alpha, temperature, taught in self._mixtures(lesson, rows):
            fit = learning.fit(taught, self.search.l2, temperature=temperature)
            said, replies = (
                answer_rows(fit, _stacked(vectors, asking), _counts(asking)) for asking in (lesson.validation, asked)
            )
            own = fit_temperature(said, answers)  # every student's, as ``distill`` gives it to its own
            losses = gold_losses(said / own[:, None, None], answers).mean(1)
            for l2, nll, reply in zip(self.search.l2, losses, replies / own[:, None, None], strict=True):
                settings = {"alpha": alpha, "temperature": temperature, "l2": l2}
                tried.append((Tried(settings=settings, nll=float(nll)), reply))
        best, reply = min(tried, key=lambda one: one[0].nll)
        return Trained(
            probs=tuple(softmax(row[: len(e.options)]) for row, e in zip(reply, asked, strict=True)),
            chosen=best.settings,
            tried=tuple(one for one, _ in tried),
            steps=0,
        )

    def _mixtures(self, lesson: Lesson, rows: Sequence[Example]) -> Iterator[tuple[float, float, list[RowLesson]]]:
        """Each alpha and temperature, and what each row teaches; gold labels alone leave nothing to mix or to soften."""
        if lesson.recipe.gold:
            taught = gold_lessons(rows)
            yield 1.0, 1.0, [taught[e.id] for e in rows]
            return
        targets = lesson.recipe.make(lesson.evidence)
        told = [e for e in rows if e.id in set(targets.ids)]
        for alpha in self.search.alpha:
            config = self.config.model_copy(update={"alpha": alpha})
            taught = {**gold_lessons(rows), **soft_lessons(told, targets, config, f"the method {lesson.name}")}
            for temperature in self.search.temperature:
                yield alpha, temperature, [taught[e.id] for e in rows]

    def _matched(self, lesson: Lesson) -> dict[str, np.ndarray]:
        """Embeddings as the teacher's states that they predict best: what a frozen student can do of ``hidden-kd``."""
        rows = [*lesson.evidence.labelled, *lesson.evidence.pool]
        states = lesson.hidden(rows)
        projection = fit_projection(_stacked(self.vectors, rows), [states[e.id] for e in rows])
        return {row_id: projection.apply(vector) for row_id, vector in self.vectors.items()}

    def alone(self, evidence: Evidence) -> View:
        """See ``Learner``."""
        labelled, pool = list(evidence.labelled), list(evidence.pool)
        fitted = fit_alone(_stacked(self.vectors, labelled), labelled, evidence.folds, self.probe)
        said = fitted.logits(_stacked(self.vectors, pool), pool) if pool else []
        width = widest((*labelled, *pool))
        honest = labelled_logits(fitted.honest, evidence.answers, evidence.folds)
        return View(honest=padded(honest, width), pool=padded(said, width))


def _counts(rows: Sequence[Example]) -> list[int]:
    return [len(e.options) for e in rows]


def _stacked(vectors: Mapping[str, np.ndarray], rows: Sequence[Example]) -> np.ndarray:
    """(n, 1, d), or (n, k, d) with as many options as the widest of the rows."""
    return np.stack([vectors[e.id] for e in rows])

"""A student that is trained by steps, in a study: ``distill`` at each setting, and what comes of the best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from probekd.config import StudentConfig
from probekd.errors import DivergedError
from probekd.methods import View
from probekd.methods.views import Evidence
from probekd.metrics import log_losses
from probekd.progress import Progress
from probekd.student import Student, distill
from probekd.student.history import best_epoch
from probekd.study.config import SearchConfig
from probekd.study.learners.base import Lesson, Trained, Tried
from probekd.study.learners.static import StaticLearner
from probekd.tasks.base import Example, Task


@dataclass(frozen=True, kw_only=True)
class TrainedLearner:
    """Students of any kind that ``distill`` trains.

    Attributes:
        task: Its kind, labels, prompt and worked examples.
        config: The student's; the search's values take the place of its own.
        search: What is tried. Epochs are chosen by the student's early stopping on the same validation rows.
        frozen: The same checkpoint as a ``static`` student, which says what it knows by itself.
        progress: Told of each step.
    """

    task: Task
    config: StudentConfig
    search: SearchConfig
    frozen: StaticLearner
    progress: Progress

    def learn(self, lesson: Lesson, asked: Sequence[Example]) -> Trained:
        """See ``Learner``."""
        evidence, recipe = lesson.evidence, lesson.recipe
        pool = () if recipe.pool == "never" else evidence.pool
        splits = {"train": evidence.labelled, "unlabelled": pool, "validation": lesson.validation}
        dev = {"dev": self.task.splits["dev"]} if "dev" in self.task.splits else {}
        task = replace(self.task, splits={**{name: rows for name, rows in splits.items() if rows}, **dev})
        targets = None if recipe.gold else recipe.make(evidence)
        rows = (*evidence.labelled, *pool)
        hidden = lesson.hidden(rows) if recipe.hidden else None
        best: Trained | None = None
        tried: list[Tried] = []
        for settings in self._settings(gold=recipe.gold):
            try:
                student = distill(
                    self.config.model,
                    task,
                    targets,
                    hidden=hidden,
                    config=self.config.model_copy(update=settings),
                    method="labels" if recipe.gold and not recipe.hidden else lesson.name,
                    seed=lesson.seed,
                    progress=self.progress,
                )
                nll = _log_loss(student, lesson.validation)
            except DivergedError as error:
                diverged = error
                continue
            tried.append(Tried(settings=settings, nll=nll))
            if nll <= min(one.nll for one in tried):
                history = student.info.history
                best = Trained(
                    probs=tuple(student.predict_proba(asked)),
                    chosen={**settings, "epochs": history[best_epoch(history)].epoch},
                    tried=(),
                    steps=history[-1].steps,
                )
        if best is None:
            raise diverged
        return replace(best, tried=tuple(tried))

    def _settings(self, *, gold: bool) -> Iterator[dict[str, float]]:
        """The grid; gold labels alone leave nothing to mix or to soften."""
        for rate in self.search.learning_rate or (self.config.learning_rate,):
            for alpha in (1.0,) if gold else self.search.alpha:
                for temperature in (1.0,) if gold else self.search.temperature:
                    yield {"learning_rate": rate, "alpha": alpha, "temperature": temperature}

    def alone(self, evidence: Evidence) -> View:
        """See ``Learner``: of its frozen embedding, a lower bound of what training gives."""
        return self.frozen.alone(evidence)


def _log_loss(student: Student, rows: Sequence[Example]) -> float:
    """Mean over answered rows; raises DivergedError where the last step left weights that say nothing."""
    answers = [e.answer for e in rows if e.answer is not None]
    nll = float(log_losses(student.predict_proba(rows), answers).mean())
    if not math.isfinite(nll):
        raise DivergedError(f"the student's log-loss on validation rows became {nll}; lower student.learning_rate")
    return nll

"""What each row teaches: its gold label, its target, the teacher's states, and what each of them counts for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from probekd.config import StudentConfig
from probekd.errors import ConfigError, DataError
from probekd.student.losses import RowWeights, confidence_weights, mix
from probekd.targets import SoftTargets
from probekd.tasks.base import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What one row teaches.

    Attributes:
        target_logits: Target at temperature 1, (k,); -inf where the probability is 0. Even where there is no target.
        answer: Gold index; 0 where there is none.
        weights: What target and label count for.
        states: The teacher's, standardised: (1, d), or (k, d) with one for each option; None = not matched.
    """

    target_logits: np.ndarray
    answer: int
    weights: RowWeights
    states: np.ndarray | None = None


def gold_lessons(examples: Sequence[Example]) -> dict[str, Lesson]:
    """Lessons without targets, by id: a labelled row teaches its gold label alone, and a pool row nothing so far."""
    return {
        e.id: Lesson(
            target_logits=np.zeros(len(e.options)),
            answer=e.answer or 0,
            weights=RowWeights(gold=float(e.answer is not None), soft=0.0),
        )
        for e in examples
    }


def soft_lessons(
    examples: Sequence[Example], targets: SoftTargets, config: StudentConfig, where: str
) -> dict[str, Lesson]:
    """Lessons of labelled and pool rows that all have a target, by id.

    A row whose target is its gold label, since no fold could hold it out, teaches that label alone; a smoothed label is a
    target like any other.

    Args:
        examples: Rows.
        targets: Of at least these rows.
        config: ``alpha``, ``confidence_weights`` and ``divergence``.
        where: The task, for messages.

    Raises:
        DataError: a row without a target, or with one of the wrong length.
        ConfigError: a target that rules an option out, which reverse KL cannot learn from.
    """
    logits = _target_logits(examples, targets, where)
    source = dict(zip(targets.ids, targets.sources, strict=True))
    soft = [e for e in examples if source[e.id] != "gold"]
    if config.divergence == "reverse_kl":
        for e in soft:
            if not np.isfinite(logits[e.id]).all():
                raise ConfigError(
                    f"{where}, row {e.id!r}: the target rules an option out, which student.divergence reverse_kl cannot "
                    "learn from; take forward_kl or jensen_shannon"
                )
    said = [logits[e.id] for e in soft]
    confidence = confidence_weights(said) if config.confidence_weights else np.ones(len(soft))
    lessons = {
        e.id: Lesson(
            target_logits=logits[e.id],
            answer=e.answer or 0,
            weights=mix(alpha=config.alpha, labelled=e.answer is not None, confidence=float(c)),
        )
        for e, c in zip(soft, confidence, strict=True)
    }
    return gold_lessons(examples) | lessons


def _target_logits(examples: Sequence[Example], targets: SoftTargets, where: str) -> dict[str, np.ndarray]:
    """Each row's target by id, shape (k_i,)."""
    by_id: Mapping[str, np.ndarray] = targets.by_id()
    if missing := [e.id for e in examples if e.id not in by_id]:
        raise DataError(
            f"{where}: {len(missing)} of {len(examples)} training and pool rows have no target, such as "
            f"{missing[0]!r}; make the targets from the same task, labels and pool"
        )
    for e in examples:
        target = by_id[e.id]
        if target.shape != (len(e.options),) or not np.isfinite(target.max()):
            k = len(e.options)
            raise DataError(f"{where}, row {e.id!r}: the target {target} is not one for {k} options")
    return {e.id: by_id[e.id] for e in examples}


def with_states(
    lessons: Mapping[str, Lesson], examples: Sequence[Example], hidden: Mapping[str, np.ndarray], where: str
) -> dict[str, Lesson]:
    """Lessons with the teacher's states, standardised over all rows.

    Args:
        lessons: By id.
        examples: Their rows.
        hidden: State of each row by id: (d,), or (k, d) with one for each of its options.
        where: The task, for messages.

    Raises:
        DataError: a row without a state, or states of several shapes.
    """
    if missing := [e.id for e in examples if e.id not in hidden]:
        raise DataError(
            f"{where}: {len(missing)} of {len(examples)} training and pool rows have no teacher state, such as "
            f"{missing[0]!r}; read states of the splits train and unlabelled"
        )
    widths = {hidden[e.id].shape[-1] for e in examples}
    for e in examples:
        state = hidden[e.id]
        if len(widths) > 1 or state.shape not in {(state.shape[-1],), (len(e.options), state.shape[-1])}:
            raise DataError(
                f"{where}, row {e.id!r}: teacher states of shape {state.shape}; expected one of (d,), or one for each of "
                f"the {len(e.options)} options, (k, d), with the same d for all rows"
            )
    states = standardised([np.atleast_2d(hidden[e.id]) for e in examples])
    return {e.id: replace(lessons[e.id], states=state) for e, state in zip(examples, states, strict=True)}


def standardised(states: Sequence[np.ndarray]) -> list[np.ndarray]:
    """States with mean 0 and deviation 1 in each dimension over all rows: float32, shapes kept.

    A few dimensions of a residual stream are hundreds of times larger than the rest, and most of a state is common to
    all rows: without this, both would be all that a student is asked to match.

    Args:
        states: (s_i, d) of each row.
    """
    stacked = np.concatenate(states).astype(np.float64)
    mean, deviation = stacked.mean(axis=0), stacked.std(axis=0)
    deviation[deviation == 0] = 1
    return [((row - mean) / deviation).astype(np.float32) for row in states]

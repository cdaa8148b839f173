"""The gate: before a student is trained, is the probe worth distilling from?

Three ways are weighed by out-of-fold log-loss on the labelled rows: the student alone on the labels (its frozen
embedding with a linear head, a lower bound of what fine-tuning would give), the teacher's best output readout, and the
probe. They are ordered by how much machinery they need, and each step up must be earned by a 95% interval that excludes
zero. So ties go to the simpler way, and with equally good readers ``probe-kd`` is said in at most one case in twenty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from probekd.evaluation.paired import Comparison, compare

VERDICT_OF = {"probe": "probe-kd", "teacher_output": "logit-kd", "student_alone": "labels"}
"""Verdict that advises to learn from each."""
METHOD_OF = {"labels": "labels", "logit-kd": "calibrated-logit-kd", "probe-kd": "probe-kd"}
"""Method of the student that each verdict advises."""
NAMES = {
    "probe": "the probe",
    "teacher_output": "the teacher's best output readout",
    "student_alone": "the student alone",
}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The verdict and what it rests on; differences are probe minus ``versus``, out-of-fold.

    Attributes:
        verdict: ``probe-kd``, ``logit-kd`` or ``labels``.
        metric: ``nll``: the metric of ``difference`` and ``ci``.
        versus: The stronger of the two rivals: ``teacher_output`` or ``student_alone``.
        reason: One sentence.
        n: Labelled rows that were scored.
    """

    verdict: str
    metric: str
    versus: str
    difference: float
    ci: list[float]
    accuracy_difference: float
    accuracy_ci: list[float]
    reason: str
    n: int

    def as_dict(self) -> dict[str, Any]:
        """The contract's JSON object."""
        return asdict(self)


def leader(difference: float, versus: str) -> str:
    """Who has the lowest log-loss of the three, surely or not; the arguments are a ``Gate``'s attributes."""
    return "probe" if difference < 0 else versus


def judge(
    probs: Mapping[str, Sequence[np.ndarray]],
    answers: Sequence[int],
    *,
    folds: int,
    resamples: int,
    seed: int,
    unchecked: int = 0,
    groups: Sequence[str] | None = None,
) -> tuple[Gate, list[Comparison]]:
    """Weigh ``probe``, ``teacher_output`` and ``student_alone`` (distributions by row, out of fold) against each other.

    Args:
        probs: Of the n rows that were scored.
        answers: (n,).
        folds: Number of folds they were cross-fitted with; 1 for predictors that never saw these rows at all.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        unchecked: Further labelled rows, the only ones of their label, on which nothing could be checked; said in the reason.
        groups: (n,) keys of rows that are variants of one question, and so count as one.
    """

    def against(a: str, b: str) -> dict[str, Comparison]:
        both = probs[a], probs[b]
        found = compare("train", (a, b), both, answers, folds=folds, resamples=resamples, seed=seed, groups=groups)
        return {c.metric: c for c in found}

    pairs = {
        (a, b): against(a, b)
        for a, b in (("probe", "teacher_output"), ("probe", "student_alone"), ("teacher_output", "student_alone"))
    }
    beats = {pair: found["nll"].ci[1] < 0 for pair, found in pairs.items()}
    if beats["probe", "teacher_output"] and beats["probe", "student_alone"]:
        verdict = "probe-kd"
    elif beats["teacher_output", "student_alone"]:
        verdict = "logit-kd"
    else:
        verdict = "labels"
    # The rival is the one that the probe's log-loss is closest to or behind.
    versus = max(("teacher_output", "student_alone"), key=lambda rival: pairs["probe", rival]["nll"].difference)
    nll, accuracy = pairs["probe", versus]["nll"], pairs["probe", versus]["accuracy"]
    gate = Gate(
        verdict=verdict,
        metric="nll",
        versus=versus,
        difference=nll.difference,
        ci=nll.ci,
        accuracy_difference=accuracy.difference,
        accuracy_ci=accuracy.ci,
        reason=_reason(verdict, pairs, unchecked) + _lead(verdict, leader(nll.difference, versus)),
        n=len(answers),
    )
    return gate, [c for found in pairs.values() for c in found.values()]


def _reason(verdict: str, pairs: Mapping[tuple[str, str], Mapping[str, Comparison]], unchecked: int) -> str:
    def lead(pair: tuple[str, str]) -> str:
        c, accuracy = pairs[pair]["nll"], pairs[pair]["accuracy"]
        return f"log-loss {c.difference:+.2f} [{c.ci[0]:+.2f}, {c.ci[1]:+.2f}], accuracy {100 * accuracy.difference:+.0f} points"

    output, alone, words = ("probe", "teacher_output"), ("probe", "student_alone"), ("teacher_output", "student_alone")
    n = pairs[output]["nll"].n
    rows = f"{n} labelled rows"
    if unchecked:
        rows = f"{n} of {n + unchecked} labelled rows (the other {unchecked} are the only ones of their label)"
    if verdict == "probe-kd":
        return (
            f"on {rows}, out-of-fold, the probe beats the teacher's best output readout ({lead(output)}) "
            f"and the student alone ({lead(alone)}): distil from the probe"
        )
    if verdict == "logit-kd":
        return (
            f"on {rows}, out-of-fold, the teacher's output readout beats the student alone ({lead(words)}), "
            f"and the probe is not surely better than both ({lead(output)} against the readout): distil from the outputs"
        )
    rival = "the student alone" if pairs[alone]["nll"].ci[1] >= 0 else "the teacher's output"
    return (
        f"on {rows}, out-of-fold, the probe is not surely better than {rival} "
        f"({lead(alone if rival == 'the student alone' else output)}), and the output readout not surely better than the student alone "
        f"({lead(words)}): train on the labels, and look at the baselines before paying for a teacher"
    )


def _lead(verdict: str, who: str) -> str:
    """What is added where another one leads, though not surely: in studies such a lead mostly held (docs/study.md)."""
    if VERDICT_OF[who] == verdict:
        return ""
    return f"; {NAMES[who]} leads all the same, so that {VERDICT_OF[who]} is the likelier winner, and more labels would tell"

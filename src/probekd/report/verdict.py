"""The verdict in words: what the gate said, whether the trained students bear it out, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from probekd.evaluation.gate import METHOD_OF
from probekd.report.data import Comparison, Gate, RunData, Score
from probekd.report.formats import signed

Standing = Literal["contradicted", "borne out", "not settled", "not tested"]
HIGHER_IS_BETTER = {"accuracy": True, "macro_f1": True, "nll": False, "brier": False, "ece": False}
METRIC_WORDS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "nll": "log-loss",
    "brier": "Brier score",
    "ece": "calibration error",
}
METHOD_WORDS = {
    "probe-kd": "trained on the probe's targets",
    "calibrated-logit-kd": "trained on the teacher's output",
    "labels": "trained on the labels alone",
}
HEADLINES = {
    "probe-kd": "Worth it here: distil from the hidden states.",
    "logit-kd": "Not worth it here: distil the teacher's output.",
    "labels": "Not worth it here: train on the labels alone.",
}
ADVICE = {
    "probe-kd": "Train the student on the probe's soft labels (student.method: probe-kd).",
    "logit-kd": "Use the teacher's output readout as the soft labels (set student.method to calibrated-logit-kd).",
    "labels": "Spend nothing on a teacher (set student.method to labels), or label more rows and look again.",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Sentences for the head of the page.

    Attributes:
        headline: Is probe-kd worth it here?
        evidence: By how much, with intervals, on how many rows.
        advice: What to do.
        standing: How the trained students' results relate to the gate's advice.
        students: One sentence for each student that the advised one competes with.
    """

    headline: str
    evidence: str
    advice: str
    standing: Standing
    students: tuple[str, ...]


def method_words(method: str) -> str:
    """``trained on ...`` for a method."""
    return METHOD_WORDS.get(method, f"trained by {method}")


def who_words(who: str, method: str) -> str:
    """A predictor's name in full; ``method`` is the one of the run's own student."""
    fixed = {
        "teacher_output": "Teacher's best output readout",
        "probe": "Probe on the teacher's hidden states",
        "student_alone": "Student alone, without a teacher",
        "student": f"Student {method_words(method)}",
    }
    if who.startswith("student:"):
        return f"Student {method_words(who.removeprefix('student:'))}"
    return fixed.get(who, who.replace("_", " "))


def short_words(who: str, method: str) -> str:
    """A predictor's name for a narrow column."""
    fixed = {"teacher_output": "teacher output", "probe": "probe", "student": f"student, {method}"}
    return fixed.get(who) or who.replace("student:", "student, ").replace("_", " ")


def lower_first(text: str) -> str:
    """The text as the middle of a sentence."""
    return text[:1].lower() + text[1:]


def amount(metric: str, value: float) -> str:
    """The size of a difference, without its sign."""
    return (
        f"{100 * abs(value):.1f} points"
        if metric in ("accuracy", "macro_f1")
        else f"{abs(value):.3f}" + (" nats" if metric == "nll" else "")
    )


def difference_words(metric: str, value: float, ci: tuple[float, float]) -> str:
    """``3.1 points higher accuracy (95% interval +1.0 to +5.2)``."""
    direction = "higher" if value > 0 else "lower"
    scale, digits = (100, 1) if metric in ("accuracy", "macro_f1") else (1, 3)
    low, high = (signed(end * scale, digits) for end in ci)
    return f"{amount(metric, value)} {direction} {METRIC_WORDS[metric]} (95% interval {low} to {high})"


def outcome_words(comparison: Comparison) -> str:
    """Which of the two is clearly better, if either."""
    return {1: "first is better", 0: "no clear difference", -1: "second is better"}[advantage(comparison, comparison.a)]


def advantage(comparison: Comparison, who: str) -> Literal[-1, 0, 1]:
    """1 where ``who`` is clearly better than the other, -1 where clearly worse, 0 where the interval holds zero."""
    low, high = comparison.ci
    if low <= 0 <= high:
        return 0
    a_better = (low > 0) == HIGHER_IS_BETTER[comparison.metric]
    return 1 if a_better == (who == comparison.a) else -1


def students_by_method(run: RunData) -> dict[str, str]:
    """Method -> who, for the students that the main split was predicted with."""
    found = {who.removeprefix("student:"): who for who in run.scores[run.main_split] if who.startswith("student:")}
    return {**found, run.config.student.method: "student"} if "student" in run.scores[run.main_split] else found


def judge(run: RunData) -> Verdict:
    """Put the gate's advice into words and hold it against the students' results on the main split."""
    gate, students = run.gate, students_by_method(run)
    method = METHOD_OF.get(gate.verdict, gate.verdict)
    advised = students.get(method)
    rivals = [who for name, who in students.items() if name != method]
    standing: Standing = "not tested"
    sentences: list[str] = []
    better: list[str] = []
    if advised:
        outcomes = {rival: _against(run, advised, rival) for rival in rivals}
        sentences = [sentence for _, sentence in outcomes.values()]
        standing = _standing([outcome for outcome, _ in outcomes.values()])
        better = [rival for rival, (outcome, _) in outcomes.items() if outcome == -1]
    elif rivals:
        sentences = [f"No student of this run was {method_words(method)}, so its results cannot test the advice."]
    return Verdict(
        headline=_contradiction(gate)
        if better
        else HEADLINES.get(gate.verdict, f"The gate's verdict: {gate.verdict}."),
        evidence=_evidence(gate, run.probe.scored, run.config.student.method),
        advice=_overruled(run, better) if better else ADVICE.get(gate.verdict, ""),
        standing=standing,
        students=tuple(sentences),
    )


def _evidence(gate: Gate, scored: int, method: str) -> str:
    versus = lower_first(who_words(gate.versus, method))
    parts = [difference_words(gate.metric, gate.difference, gate.ci)]
    if gate.accuracy_difference is not None and gate.accuracy_ci is not None:
        parts.append(difference_words("accuracy", gate.accuracy_difference, gate.accuracy_ci))
    clear = (
        "" if not gate.ci[0] <= 0 <= gate.ci[1] else " The first interval holds zero, so there is no clear difference."
    )
    return f"Out of fold on {scored:,} labelled rows, the probe has {' and '.join(parts)} than the {versus}.{clear}"


def _contradiction(gate: Gate) -> str:
    return {
        "probe-kd": "The gate said worth it; the trained students say otherwise.",
        "logit-kd": "The gate advised the teacher's output; the trained students say otherwise.",
        "labels": "The gate advised the labels alone; the trained students say otherwise.",
    }.get(gate.verdict, "The trained students contradict the gate.")


def _overruled(run: RunData, better: list[str]) -> str:
    scores = run.scores[run.main_split]
    best = max(better, key=lambda who: scores[who].accuracy)
    name = lower_first(who_words(best, run.config.student.method))
    return f"Believe the students: they are what you serve, and the gate saw only the labelled rows. Serve the {name}."


def _against(run: RunData, advised: str, rival: str) -> tuple[Literal[-1, 0, 1] | None, str]:
    """Outcome of the advised student against a rival (None = not compared), and the sentence that tells it.

    Accuracy decides; log-loss does only when accuracy is undecided.
    """
    pair = {advised, rival}
    found = {c.metric: c for c in run.comparisons if c.split == run.main_split and {c.a, c.b} == pair}
    names = [lower_first(who_words(who, run.config.student.method)) for who in (advised, rival)]
    if not found:
        scores = [run.scores[run.main_split][who] for who in (advised, rival)]
        return (
            None,
            f"The {names[0]} has {_accuracy(scores[0])} and the {names[1]} {_accuracy(scores[1])}; the difference was not tested.",
        )
    ordered = [found[m] for m in ("accuracy", "nll", *found) if m in found]
    told = next((c for c in ordered if advantage(c, advised)), ordered[0])
    outcome = advantage(told, advised)
    sign = 1 if told.a == advised else -1
    low, high = sorted((sign * told.ci[0], sign * told.ci[1]))
    words = difference_words(told.metric, sign * told.difference, (low, high))
    ending = {1: "clearly better", 0: "no clear difference", -1: "clearly worse"}[outcome]
    return outcome, f"On {told.n:,} {run.main_split} rows the {names[0]} has {words} than the {names[1]}: {ending}."


def _accuracy(score: Score) -> str:
    return f"{score.accuracy:.1%} accuracy"


def _standing(outcomes: list[Literal[-1, 0, 1] | None]) -> Standing:
    if -1 in outcomes:
        return "contradicted"
    if not outcomes or None in outcomes:
        return "not tested"
    return "borne out" if 0 not in outcomes else "not settled"

"""Do the intervals hold the truth, does the gate cry wolf, is the nested estimate free of optimism? Where truth is known.

Usage: python studies/simulations.py [--scale 0.1] [--workers 2]

Writes studies/results/simulations.json and prints it as a table. Every figure has its Monte-Carlo standard error, and
those with a target say whether they are inside it. ``--scale`` shrinks every number of simulations, for a first look.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from probekd.evaluation.gate import judge
from probekd.evaluation.paired import Comparison, shared_training
from probekd.files import write_text
from probekd.metrics import Z_95
from probekd.probes.calibrate import gold_losses
from probekd.probes.choose import Choice, choose
from probekd.probes.crossfit import CrossFit, concatenate, crossfit, fit_folds, untrained
from probekd.probes.estimator import softmax_rows

RESULTS = Path(__file__).resolve().parent / "results" / "simulations.json"
NAMES = ("probe", "teacher_output", "student_alone")
OPTIONS, FOLDS, RESAMPLES, TOLERANCE = 4, 5, 2000, 1e-3
STRENGTHS = (0.1, 1.0)
POPULATION, FRESH = 1_000_000, 4000
# Calls a function with the seeds 0, 1, ... and lists what it gave.
Runner = Callable[[Callable[[int], Any], int], list[Any]]
COVERAGE, ONE_IN_TWENTY, NO_BIAS = (0.93, 0.97), (0.0, 0.05), (-0.01, 0.01)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number, its Monte-Carlo standard error, and the band it should be in, if any."""

    name: str
    value: float
    se: float
    simulations: int
    target: tuple[float, float] | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the value is in the band."""
        return None if self.target is None else self.target[0] <= self.value <= self.target[1]

    def as_dict(self) -> dict[str, object]:
        """The JSON object; ``pass`` is null for a figure without a target."""
        return {**asdict(self), "pass": self.holds}


def share(name: str, events: Sequence[bool], target: tuple[float, float] | None = None) -> Figure:
    """How often something happened."""
    p, n = float(np.mean(events)), len(events)
    return Figure(name=name, value=p, se=(p * (1 - p) / n) ** 0.5, simulations=n, target=target)


def average(name: str, values: Sequence[float], target: tuple[float, float] | None = None) -> Figure:
    """A mean over simulations."""
    se = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Figure(name=name, value=float(np.mean(values)), se=se, simulations=len(values), target=target)


def spread(name: str, values: Sequence[float], unit: float) -> Figure:
    """Standard deviation over simulations, in units of what was thought of it."""
    ratio = float(np.std(values, ddof=1)) / unit
    return Figure(name=name, value=ratio, se=ratio / (2 * len(values)) ** 0.5, simulations=len(values))


def draws(seed: int) -> np.random.Generator:
    """The data of one simulation: another stream than the bootstrap's, which is seeded with the number itself."""
    return np.random.default_rng([seed, 1])


# Readers whose distributions come from a known model.


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Readers with logits (strength at the gold option + noise) * strength * confidence: calibrated at confidence 1.

    Attributes:
        strengths: Of the probe, the output readout and the student alone.
        confidence: Factor on each one's logits.
        tail: Standard deviation of the log of a further factor, drawn for each row and reader.
        shared: Correlation of the readers' noise.
    """

    strengths: tuple[float, float, float]
    confidence: tuple[float, float, float] = (1.0, 1.0, 1.0)
    tail: float = 0.0
    shared: float = 0.5


SETTINGS = {
    "equal readers": Setting(strengths=(1.6, 1.6, 1.6)),
    "clearly different": Setting(strengths=(2.2, 1.2, 1.0)),
    "one overconfident": Setting(strengths=(1.6, 1.6, 1.0), confidence=(2.5, 1.0, 1.0)),
    "heavy tails": Setting(strengths=(1.6, 1.6, 1.0), tail=0.7),
    "heavy tails, skewed": Setting(strengths=(2.2, 1.0, 0.8), confidence=(2.0, 1.0, 1.0), tail=0.5, shared=0.3),
    "rare and dear errors": Setting(strengths=(5.5, 3.0, 1.0), tail=0.3),
}
# None deserves probe-kd: the probe is no better than the best of the others.
NULLS = {
    "three equal readers": Setting(strengths=(1.6, 1.6, 1.6)),
    "three equal readers, heavy tails": Setting(strengths=(1.6, 1.6, 1.6), tail=0.7),
    "probe equal to the output, student poor": Setting(strengths=(1.6, 1.6, 0.2)),
    "probe equal to the student, output poor": Setting(strengths=(1.6, 0.2, 1.6)),
}


def read(setting: Setting, answers: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Logits (n, 4) of the three readers, from answers (n,)."""
    common = generator.normal(size=(len(answers), OPTIONS))
    said = []
    for strength, confidence in zip(setting.strengths, setting.confidence, strict=True):
        own = generator.normal(size=common.shape)
        noise = setting.shared**0.5 * common + (1 - setting.shared) ** 0.5 * own
        factor = strength * confidence * np.exp(setting.tail * generator.normal(size=(len(answers), 1)))
        said.append(factor * (strength * np.eye(OPTIONS)[answers] + noise))
    return said


def weigh(
    logits: Sequence[np.ndarray], answers: np.ndarray, seed: int, *, folds: int = 1
) -> tuple[str, str, list[Comparison]]:
    """The gate's verdict, the rival it names, and its comparisons."""
    probs = {who: list(softmax_rows(z)) for who, z in zip(NAMES, logits, strict=True)}
    gate, comparisons = judge(probs, answers.tolist(), folds=folds, resamples=RESAMPLES, seed=seed)
    return gate.verdict, gate.versus, comparisons


def true_differences(setting: Setting) -> dict[tuple[str, str, str], float]:
    """(a, b, metric) -> a minus b over a large population."""
    generator = np.random.default_rng(2**31)
    answers = generator.integers(0, OPTIONS, POPULATION)
    logits = read(setting, answers, generator)
    score = {
        who: {"accuracy": float((z.argmax(1) == answers).mean()), "nll": float(gold_losses(z, answers).mean())}
        for who, z in zip(NAMES, logits, strict=True)
    }
    return {(a, b, m): score[a][m] - score[b][m] for a in NAMES for b in NAMES for m in ("accuracy", "nll")}


def one_coverage(
    seed: int, *, setting: Setting, n: int, truth: dict[tuple[str, str, str], float]
) -> tuple[bool, bool, bool, bool]:
    """Whether the intervals hold the truth: accuracy and nll against the output, and against the rival the gate names."""
    generator = draws(seed)
    answers = generator.integers(0, OPTIONS, n)
    logits = read(setting, answers, generator)
    _, versus, comparisons = weigh(logits, answers, seed)
    holds = {(c.a, c.b, c.metric): c.ci[0] <= truth[c.a, c.b, c.metric] <= c.ci[1] for c in comparisons}
    rivals = [("probe", rival, metric) for rival in ("teacher_output", versus) for metric in ("accuracy", "nll")]
    return tuple(holds[key] for key in rivals)  # type: ignore[return-value]


def coverage(run: Runner, count: int) -> list[Figure]:
    """How often the 95% intervals of ``judge`` hold the true difference."""
    figures = []
    for name, setting in SETTINGS.items():
        truth = true_differences(setting)
        for n in (100, 300):
            found = run(partial(one_coverage, setting=setting, n=n, truth=truth), count)
            accuracy, nll, named_accuracy, named_nll = zip(*found, strict=True)
            label = f"coverage, {name}, n={n}"
            figures += [share(f"{label}: accuracy", accuracy, COVERAGE), share(f"{label}: log-loss", nll, COVERAGE)]
            figures += [
                share(f"{label}: accuracy, rival named by the gate", named_accuracy),
                share(f"{label}: log-loss, rival named by the gate", named_nll),
            ]
    return figures


def one_verdict(seed: int, *, setting: Setting, n: int) -> str:
    """The gate's verdict on one draw."""
    generator = draws(seed)
    answers = generator.integers(0, OPTIONS, n)
    return weigh(read(setting, answers, generator), answers, seed)[0]


def false_alarms(run: Runner, count: int) -> list[Figure]:
    """How often the gate says probe-kd when the probe is no better."""
    figures = []
    for name, setting in NULLS.items():
        for n in (100, 300):
            verdicts = run(partial(one_verdict, setting=setting, n=n), count)
            alarms = [v == "probe-kd" for v in verdicts]
            figures.append(share(f"probe-kd said, {name}, n={n}", alarms, ONE_IN_TWENTY))
    return figures


# States whose truth is known, read by real probes.


@dataclass(frozen=True, kw_only=True)
class World:
    """States (n, d) of each depth: a direction for each answer, and noise of size one.

    Attributes:
        width: d.
        signals: Length of the directions at each depth.
        shared: Correlation of the depths' noise.
    """

    width: int
    signals: tuple[float, ...]
    shared: float

    def draw(self, answers: np.ndarray, directions: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """States of every depth, float32."""
        common = generator.normal(size=(len(answers), self.width))
        states = []
        for signal, direction in zip(self.signals, directions, strict=True):
            noise = self.shared**0.5 * common + (1 - self.shared) ** 0.5 * generator.normal(size=common.shape)
            states.append((signal * direction[answers] + noise).astype(np.float32))
        return states

    def directions(self, generator: np.random.Generator) -> np.ndarray:
        """(depths, 4, d), orthogonal and of length one; the same at every depth where the noise is shared."""

        def basis() -> np.ndarray:
            return np.asarray(np.linalg.qr(generator.normal(size=(self.width, OPTIONS)))[0].T)

        first = basis()
        return np.stack([first if self.shared else basis() for _ in self.signals])


def balanced(n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Answers (n,) of which every option has its share, and folds (n,) that have theirs, as labels are drawn and dealt.

    Of answers drawn freely the folds share the shares that chance gave, which a probe learns and fresh rows do not have:
    reported accuracies would be too good by a point or two at a hundred rows.
    """
    answers = generator.permutation(n) % OPTIONS
    folds = np.empty(n, dtype=np.int64)
    folds[np.argsort(answers, kind="stable")] = np.arange(n) % FOLDS
    return answers, folds


def cross_fitted(states: Sequence[np.ndarray], answers: np.ndarray, folds: np.ndarray) -> CrossFit:
    """Candidates depth by depth, each at every strength."""
    present = np.ones((len(answers), OPTIONS), dtype=bool)
    return concatenate([crossfit(x, answers, present, folds, STRENGTHS, tolerance=TOLERANCE) for x in states])


def kin(depths: int) -> list[list[int]]:
    """For each candidate those of its depth with a stronger penalty."""
    s = len(STRENGTHS)
    return [list(range(d * s + i + 1, (d + 1) * s)) for d in range(depths) for i in range(s)]


class FoldModels:
    """The models that leave one fold out, as they read fresh states."""

    def __init__(
        self, states: Sequence[np.ndarray], fresh: Sequence[np.ndarray], answers: np.ndarray, folds: np.ndarray
    ):
        self.states, self.fresh, self.answers, self.folds = states, fresh, answers, folds
        self.known: dict[int, np.ndarray] = {}

    def __call__(self, candidate: int) -> np.ndarray:
        """(F, fresh rows, 4) logits."""
        if candidate not in self.known:
            depth, strength = divmod(candidate, len(STRENGTHS))
            present = np.ones((len(self.answers), OPTIONS), dtype=bool)
            x = self.states[depth]
            fit = fit_folds(x, self.answers, present, self.folds, STRENGTHS[strength], tolerance=TOLERANCE)
            self.known[candidate] = np.asarray(fit.logits(self.fresh[depth]))
        return self.known[candidate]


def outside(choice: Choice, read_fresh: Callable[[int], np.ndarray]) -> np.ndarray:
    """Fresh rows (F, n, 4) as the makers of the honest predictions read them: a fold's own model, choice, calibration."""
    each = zip(choice.by_fold, choice.fold_calibrations, strict=True)
    return np.stack([calibration.apply(read_fresh(best)[f]) for f, (best, calibration) in enumerate(each)])


def hit_rate(logits: np.ndarray, answers: np.ndarray) -> float:
    """Accuracy; logits may be (F, n, 4), for the mean over folds."""
    return float((logits.argmax(-1) == answers).mean())


def one_optimism(seed: int, *, world: World, n: int) -> dict[str, float]:
    """What is reported of n labelled rows, minus what the same models do on fresh rows."""
    generator = draws(seed)
    directions = world.directions(generator)
    answers, folds = balanced(n, generator)
    fresh_answers = generator.integers(0, OPTIONS, FRESH)
    states, fresh = (world.draw(y, directions, generator) for y in (answers, fresh_answers))
    fits = cross_fitted(states, answers, folds)
    choice = choose(fits, answers, folds, kin(len(states)))
    models = FoldModels(states, fresh, answers, folds)
    honest = outside(choice, models)
    best_hits = int((fits.outer.argmax(-1) == answers).mean(1).argmax())
    truth = hit_rate(honest, fresh_answers)
    return {
        "reported": hit_rate(choice.honest, answers),
        "truth": truth,
        "bias": hit_rate(choice.honest, answers) - truth,
        "log-loss bias": float(gold_losses(choice.honest, answers).mean())
        - float(np.mean([gold_losses(z, fresh_answers).mean() for z in honest])),
        "naive bias, chosen by log-loss": hit_rate(fits.outer[choice.chosen], answers)
        - hit_rate(models(choice.chosen), fresh_answers),
        "naive bias, chosen by accuracy": hit_rate(fits.outer[best_hits], answers)
        - hit_rate(models(best_hits), fresh_answers),
        "final": hit_rate(models(choice.chosen).mean(0), fresh_answers),
    }


def optimism(run: Runner, count: int, *, depths: int = 31, n: int = 100) -> list[Figure]:
    """The reported accuracy of a probe chosen among equally good depths, minus its accuracy on fresh rows."""
    figures = []
    # The signals that give each depth an accuracy near 0.70 from n rows.
    for name, world in (
        ("independent depths", World(width=20, signals=(1.85,) * depths, shared=0.0)),
        ("depths correlated 0.9", World(width=20, signals=(1.85,) * depths, shared=0.9)),
    ):
        found = run(partial(one_optimism, world=world, n=n), count)
        label = f"optimism, {depths} {name}, n={n}"
        for key, title, target in (
            ("reported", "reported accuracy", None),
            ("truth", "the same models on fresh rows", None),
            ("final", "the final probe, mean of all folds' models, on fresh rows", None),
            ("bias", "bias of the reported accuracy", NO_BIAS),
            ("log-loss bias", "bias of the reported log-loss", None),
            ("naive bias, chosen by log-loss", "naive bias, chosen by log-loss on the rows that report it", None),
            ("naive bias, chosen by accuracy", "naive bias, chosen by accuracy on the rows that report it", None),
        ):
            figures.append(average(f"{label}: {title}", [row[key] for row in found], target))
    return figures


# A gate from end to end.

TEACHER = World(width=32, signals=(1.0, 1.8, 2.4, 2.2), shared=0.6)
STUDENT = World(width=16, signals=(1.2,), shared=0.0)
WORDS = Setting(strengths=(1.1, 0.9, 1.0), confidence=(2.0, 1.0, 1.0))  # two readouts, the first one too sure


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """One gate: differences, intervals and, for the models behind them, the differences on fresh rows."""

    verdict: str
    intervals: dict[str, list[float]]
    reported: dict[str, float]
    true: dict[str, float]


def one_gate(seed: int, *, n: int) -> EndToEnd:
    """Cross-fitted probe, chosen output readout and cross-fitted student head on n simulated rows, and the gate."""
    generator = draws(seed)
    # One world for all simulations: the truth is that of the procedure in it.
    fixed = np.random.default_rng(7)
    directions, own = TEACHER.directions(fixed), STUDENT.directions(fixed)
    answers, folds = balanced(n, generator)
    fresh_answers = generator.integers(0, OPTIONS, FRESH)
    words, fresh_words = read(WORDS, answers, generator), read(WORDS, fresh_answers, generator)
    states, fresh = (TEACHER.draw(y, directions, generator) for y in (answers, fresh_answers))
    eyes, fresh_eyes = (STUDENT.draw(y, own, generator) for y in (answers, fresh_answers))
    honest, elsewhere = [], []
    for fits, depths, reads in (
        (cross_fitted(states, answers, folds), len(states), FoldModels(states, fresh, answers, folds)),
        (untrained(np.stack(words[:2]), folds), 0, lambda c: np.stack([fresh_words[c]] * FOLDS)),
        (cross_fitted(eyes, answers, folds), 1, FoldModels(eyes, fresh_eyes, answers, folds)),
    ):
        choice = choose(fits, answers, folds, kin(depths) or None)
        honest.append(choice.honest)
        elsewhere.append(outside(choice, reads))
    verdict, _, comparisons = weigh(honest, answers, seed, folds=FOLDS)
    true = {
        "accuracy": hit_rate(elsewhere[0], fresh_answers) - hit_rate(elsewhere[1], fresh_answers),
        "nll": float(
            np.mean(
                [
                    gold_losses(a, fresh_answers) - gold_losses(b, fresh_answers)
                    for a, b in zip(*elsewhere[:2], strict=True)
                ]
            )
        ),
    }
    intervals = {c.metric: c.ci for c in comparisons if (c.a, c.b) == NAMES[:2]}
    reported = {c.metric: c.difference for c in comparisons if (c.a, c.b) == NAMES[:2]}
    return EndToEnd(verdict=verdict, intervals=intervals, reported=reported, true=true)


def end_to_end(run: Runner, count: int, *, n: int = 100) -> list[Figure]:
    """Coverage when probes are cross-fitted and chosen: of the procedure's mean difference, and of these models' own.

    Rows share their training sets, so that the reported difference varies more than rows resampled with the models held
    fixed say: by how much is the last figure of each metric, where the gate's own widening is taken out again.
    """
    found = run(partial(one_gate, n=n), count)
    figures = []
    for metric, word in (("accuracy", "accuracy"), ("nll", "log-loss")):
        mean = float(np.mean([g.true[metric] for g in found]))
        low, high = np.array([g.intervals[metric] for g in found]).T
        label = f"end to end, n={n}: {word}"
        figures += [
            average(f"{label}, true difference of the procedure", [g.true[metric] for g in found]),
            share(f"{label}, coverage of the procedure's difference", list((low <= mean) & (mean <= high)), COVERAGE),
            share(
                f"{label}, coverage of the difference of these very models",
                [a <= g.true[metric] <= b for a, b, g in zip(low, high, found, strict=True)],
            ),
            average(f"{label}, width of the interval", list(high - low)),
            average(f"{label}, bias of the reported difference", [g.reported[metric] - g.true[metric] for g in found]),
            spread(
                f"{label}, standard deviation of the reported difference / what rows alone would give it",
                [g.reported[metric] for g in found],
                float((high - low).mean()) / 2 / Z_95 / shared_training(FOLDS),
            ),
        ]
    return [*figures, share(f"end to end, n={n}: verdict probe-kd", [g.verdict == "probe-kd" for g in found])]


# Running and writing.


def in_turn(one: Callable[[int], Any], count: int) -> list[Any]:
    """Simulations 0 to count - 1 in this process."""
    return [one(seed) for seed in range(count)]


def side_by_side(workers: int, scale: float) -> tuple[ProcessPoolExecutor, Runner]:
    """A pool, and a runner of ``scale`` times the simulations asked for."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))

    def run(one: Callable[[int], Any], count: int) -> list[Any]:
        count = max(20, round(scale * count))
        return list(pool.map(one, range(count), chunksize=max(1, min(20, count // (4 * workers)))))

    return pool, run


def written(figures: Iterable[Figure], command: str) -> str:
    """The JSON text."""
    return json.dumps({"command": command, "figures": [f.as_dict() for f in figures]}, indent=1) + "\n"


def show(figures: Iterable[Figure]) -> None:
    """Print figures as a table."""
    for f in figures:
        band = "" if f.target is None else f"{f.target[0]:+.2f} to {f.target[1]:+.2f}  {'pass' if f.holds else 'FAIL'}"
        print(f"{f.name:98} {f.value:+.4f} +- {f.se:.4f}  {f.simulations:5}  {band}", flush=True)


def main(arguments: list[str]) -> int:
    """Run everything; 0 whatever passes, since what falls short is a finding too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of simulations")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--to", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the workers: one thread each
    pool, run = side_by_side(args.workers, args.scale)
    figures: list[Figure] = []
    with pool:
        for study, count in ((end_to_end, 600), (optimism, 300), (coverage, 2000), (false_alarms, 2000)):
            found = study(run, count)
            show(found)
            figures += found
            write_text(args.to, written(figures, " ".join(["python studies/simulations.py", *arguments])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

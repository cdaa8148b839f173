"""The gate's verdict beside what then happened: did the method that it named win, or come within a standard error?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from probekd.evaluation.gate import METHOD_OF
from probekd.study.comparisons import Panel, behind
from probekd.study.results import Result


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One verdict and its cell.

    Attributes:
        panel: Task, budget and pool.
        seed: Of the draw.
        verdict: What the gate said.
        winner: The method with the lowest log-loss (or highest accuracy) on the test rows, of those looked at.
        worse: By how much the named method is worse than the winner; 0 where it is the winner.
        error: Standard error of that.
    """

    panel: Panel
    seed: int
    verdict: str
    winner: str
    worse: float
    error: float

    @property
    def held(self) -> bool:
        """Whether the named method won, or came within a standard error of the winner."""
        return self.worse <= self.error


def judge_verdicts(
    panels: Sequence[Panel],
    metric: str,
    among: Sequence[str],
    word: Callable[[Result], str | None] = attrgetter("verdict"),
) -> list[Judged]:
    """Every complete seed with a verdict whose method was trained.

    Args:
        panels: The cells.
        metric: ``nll`` or ``accuracy``, of the test rows.
        among: Methods among which, with the named one, the winner is looked for.
        word: The verdict of a cell; by default what the gate said.
    """
    found = []
    for panel in panels:
        for seed in panel.complete:
            verdict = next((w for (_, s), r in panel.cells.items() if s == seed and (w := word(r))), None)
            named = panel.cells.get((METHOD_OF.get(verdict or "", ""), seed))
            if verdict is None or named is None:
                continue
            rivals = {m: panel.cells[m, seed] for m in among if (m, seed) in panel.cells} | {METHOD_OF[verdict]: named}
            sign = -1 if metric == "accuracy" else 1
            winner = min(rivals, key=lambda m: sign * rivals[m].scores[metric])
            worse, error = behind(named, rivals[winner], metric)
            found.append(Judged(panel=panel, seed=seed, verdict=verdict, winner=winner, worse=worse, error=error))
    return found

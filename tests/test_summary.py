"""What the command line draws."""

from __future__ import annotations

import pytest

from probekd.report.data import DepthScore
from probekd.summary import PLOT_LINES, depth_plot


def row(depth: int, nll: float, *, window: int = 1, l2: float = 1.0, position: str = "answer") -> DepthScore:
    return DepthScore(
        layout="listed",
        position=position,
        depth=depth,
        kind="logistic",
        l2=l2,
        accuracy=0.5,
        nll=nll,
        ece=0.1,
        window=window,
    )


READER = {"layout": "listed", "position": "answer", "depth": 2}


def test_every_depth_stands_at_its_log_loss() -> None:
    scores = [row(0, 2.0), row(1, 1.5, l2=3.0), row(1, 1.9), row(2, 1.0)]
    elsewhere = [row(2, 0.1, window=5), row(2, 0.2, position="option_end")]
    title, *lines, axis, ticks = depth_plot([*scores, *elsewhere], READER, 3)
    assert "listed / answer" in title and len(lines) == PLOT_LINES
    assert lines[0] == "  2.000 |o" and lines[-1] == "  1.000 |    *"
    assert [line for line in lines if line.endswith("|  o")] in ([lines[3]], [lines[4]])
    assert axis.strip() == "+-------" and ticks.split() == ["0"]


@pytest.mark.parametrize("blocks", [12, 30, 80])
def test_the_plot_fits_a_terminal(blocks: int) -> None:
    lines = depth_plot([row(d, 1 + d / 100) for d in range(blocks + 1)], READER, blocks)
    assert max(map(len, lines)) <= 92
    assert sum(line.count("o") + line.count("*") for line in lines[1:-2]) == blocks + 1


def test_equal_losses_stand_on_one_line() -> None:
    lines = depth_plot([row(d, 1.0) for d in range(4)], READER, 3)
    assert lines[1] == "  1.000 |o o * o"

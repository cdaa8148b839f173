from __future__ import annotations

import io

from rich.console import Console

from probekd.study.live import board
from probekd.study.plan import Draw


def test_a_refused_draw_is_said_on_one_line_as_it_is() -> None:
    text = io.StringIO()
    with board(Console(file=text, width=20)) as watcher:
        watcher.refused(Draw(task="t[b]", teacher="x", budget=4, seed=0), "4 labelled rows are too few for 3 folds")
    assert text.getvalue() == "refused: t[b], 4 labels, seed 0: 4 labelled rows are too few for 3 folds\n"

"""A study from its config to its results: every draw in turn, each by one process, until all cells are there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from probekd.errors import StoreError
from probekd.files import write_json, write_text
from probekd.study.comparisons import write_comparisons
from probekd.study.config import StudyConfig
from probekd.study.directory import StudyDirectory
from probekd.study.making import make_cells
from probekd.study.markdown import markdown
from probekd.study.page import render
from probekd.study.plan import Draw
from probekd.study.results import Result, read_results, write_results
from probekd.study.summary import summarise
from probekd.study.watcher import Quiet, Watcher
from probekd.study.workshop import Workshop

RESULTS, COMPARISONS, SUMMARY = "results.parquet", "comparisons.parquet", "summary.json"
SECONDS_TO_WAIT = 5.0
"""Between two looks at draws that other processes work on."""


def run_study(study: StudyConfig, *, watcher: Watcher | None = None) -> Path:
    """Make every cell that is missing and gather the results; returns the study's directory.

    A study that was interrupted, or killed, goes on where it was. Several processes may work on one study: each takes
    draws that no other one holds.

    Raises:
        ProbeKDError: the input is at fault; cells that are made stay.
    """
    shop = Workshop(study, StudyDirectory(study.directory), watcher or Quiet())
    _restore(shop)
    waiting = [draw for draw in shop.draws() if shop.missing(draw)]
    refused = {draw: why for draw in waiting if (why := shop.refusal(draw)) is not None}
    admitted = [draw for draw in shop.draws() if draw not in refused]
    waiting = [draw for draw in waiting if draw not in refused]
    while waiting:
        _say_how_far(shop, admitted)
        busy = [draw for draw in waiting if not _take(shop, draw, admitted)]
        waiting = [draw for draw in busy if shop.missing(draw)]
        if waiting:
            time.sleep(SECONDS_TO_WAIT)
    return gather_study(study, refused=refused, shop=shop)


def gather_study(study: StudyConfig, *, refused: dict[Draw, str] | None = None, shop: Workshop | None = None) -> Path:
    """Write what the cells that are there come to; returns the study's directory.

    That is results.parquet (one row a cell), comparisons.parquet (one row a difference), summary.json (means, shares,
    verdicts), results.md and report.html.
    """
    shop = shop or Workshop(study, StudyDirectory(study.directory), Quiet())
    planned = [(cell, shop.key(cell)) for draw in shop.draws() for cell in shop.cells(draw)]
    results = [Result.of(shop.directory.read(*one)) for one in planned if shop.directory.has(*one)]
    if not results:
        raise StoreError(f"{study.directory}: no cell is made yet; run the study first")
    write_results(study.directory / RESULTS, results)
    summary = summarise(results, refused={d.name: why for d, why in (refused or {}).items()}, resamples=study.bootstrap)
    write_json(study.directory / SUMMARY, summary.as_dict())
    write_comparisons(study.directory / COMPARISONS, summary.comparisons)
    write_text(study.directory / "results.md", markdown(summary))
    write_text(study.directory / "report.html", render(study, summary))
    return study.directory


def _restore(shop: Workshop) -> None:
    """Bring cells back from the results, where their files are gone: in a fresh clone there is only what is committed."""
    path = shop.study.directory / RESULTS
    if not path.is_file():
        return
    kept = {r.record["key"]: r.record for r in read_results(path)}
    for draw in shop.draws():
        for cell in shop.missing(draw):
            key = shop.key(cell)
            if key in kept:
                shop.directory.write(cell, key, dict(kept[key]))


def _take(shop: Workshop, draw: Draw, admitted: Sequence[Draw]) -> bool:
    """Make a draw's cells; False when another process does."""
    with shop.directory.held(draw.name) as mine:
        if mine and shop.missing(draw):
            make_cells(shop, draw)
    _say_how_far(shop, admitted)
    return mine


def _say_how_far(shop: Workshop, draws: Sequence[Draw]) -> None:
    made: dict[str, tuple[int, int]] = {}
    for draw in draws:
        done, of = made.get(draw.task, (0, 0))
        cells = shop.cells(draw)
        made[draw.task] = done + len(cells) - len(shop.missing(draw)), of + len(cells)
    shop.watcher.planned(made)

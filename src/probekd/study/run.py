"""A study from its config to its results: every draw in turn, each by one process, until all cells are there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probekd.errors import DataError, ProbeKDError, StoreError
from probekd.files import write_json, write_text
from probekd.study.checks import check_students
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
    shop = _opened(study, watcher)
    refused = _refused(shop)
    admitted = [draw for draw in shop.draws() if draw not in refused]
    waiting = [draw for draw in admitted if shop.missing(draw)]
    check_students(shop, waiting)
    while waiting:
        _say_how_far(shop, admitted)
        busy = [draw for draw in waiting if not _take(shop, draw, admitted)]
        waiting = [draw for draw in busy if shop.missing(draw)]
        if waiting:
            time.sleep(SECONDS_TO_WAIT)
    return _gather(shop, refused)


def gather_study(study: StudyConfig, *, watcher: Watcher | None = None) -> Path:
    """Write what the cells that are there come to; returns the study's directory.

    That is results.parquet (one row a cell), comparisons.parquet (one row a difference), summary.json (means, shares,
    verdicts), results.md and report.html. The first keeps every cell that was ever made, the others show those that the
    config plans.

    Raises:
        ProbeKDError: no cell is there, or the input is at fault.
    """
    shop = _opened(study, watcher)
    refused = _refused(shop)
    _say_how_far(shop, [draw for draw in shop.draws() if draw not in refused])
    return _gather(shop, refused)


def _opened(study: StudyConfig, watcher: Watcher | None) -> Workshop:
    """The study with all that is known of it; raises DataError where it has nothing to draw."""
    shop = Workshop(study, StudyDirectory(study.directory), watcher or Quiet())
    if not shop.draws():
        rows = ", ".join(f"{task.label} {shop.universe(task.label).labels}" for task in study.tasks)
        raise DataError(
            f"study {study.name}: no task has {min(study.budgets)} labelled training rows to draw (there are: {rows}); "
            "lower budgets, or raise rows"
        )
    _restore(shop)
    return shop


def _refused(shop: Workshop) -> dict[Draw, str]:
    """Draws that no probe can be fitted to, and why; those whose cells are all there need none."""
    waiting = [draw for draw in shop.draws() if shop.missing(draw)]
    refused = {draw: why for draw in waiting if (why := shop.refusal(draw)) is not None}
    for draw, why in refused.items():
        shop.watcher.refused(draw, why)
    return refused


def _gather(shop: Workshop, refused: Mapping[Draw, str]) -> Path:
    study, directory = shop.study, shop.directory
    planned = [(cell, shop.key(cell)) for draw in shop.draws() for cell in shop.cells(draw)]
    results = {key: Result.of(directory.read(cell, key)) for cell, key in planned if directory.has(cell, key)}
    if not results:
        raise _nothing(study, refused)
    with directory.held("results", wait=True):  # or what another process adds meanwhile would be lost
        others = [Result.of(record) for key, record in _known(directory).items() if key not in results]
        write_results(directory.path / RESULTS, results.values(), others)
    found = tuple(results.values())
    summary = summarise(found, refused={d.name: why for d, why in refused.items()}, resamples=study.bootstrap)
    write_json(directory.path / SUMMARY, summary.as_dict())
    write_comparisons(directory.path / COMPARISONS, summary.comparisons)
    write_text(directory.path / "results.md", markdown(summary))
    write_text(directory.path / "report.html", render(study, summary))
    return directory.path


def _nothing(study: StudyConfig, refused: Mapping[Draw, str]) -> ProbeKDError:
    """Why there is no cell to be shown."""
    if refused:
        draw, why = next(iter(refused.items()))
        return DataError(f"study {study.name}: {draw.words}: {why}; raise budgets, or lower probe.folds")
    return StoreError(f"{study.directory}: no cell is made yet; run the study first")


def _known(directory: StudyDirectory) -> dict[str, Mapping[str, Any]]:
    """The record of every cell that was ever made, by key: those in the results that are there, and those with a file."""
    path = directory.path / RESULTS
    kept = [r.record for r in read_results(path)] if path.is_file() else []
    return {record["key"]: record for record in (*kept, *directory.made())}


def _restore(shop: Workshop) -> None:
    """Give cells back their files: in a fresh clone there is only what is committed, and a student may have a new name."""
    known = _known(shop.directory)
    for draw in shop.draws():
        for cell in shop.missing(draw):
            key = shop.key(cell)
            if key in known:
                shop.directory.write(cell, key, {**known[key], "settings": cell.settings()})


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

"""Render the page and write it: one HTML file that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from probekd.files import write_text
from probekd.report import breakdown, charts
from probekd.report.data import Comparison, DepthScore, Figures, Predictions, RunData, read_run
from probekd.report.formats import duration, num, p_value, pct, plain, points, size, whole_pct
from probekd.report.verdict import (
    METRIC_WORDS,
    judge,
    lower_first,
    outcome_words,
    short_words,
    who_words,
)
from probekd.tasks.base import Example

# Shape and colour go together everywhere, so that neither is needed to read the other.
LOOKS = {
    "teacher_output": ("square", "teacher"),
    "probe": ("circle", "probe"),
    "student": ("diamond", "student"),
    "student:labels": ("triangle", "plain"),
    "student:calibrated-logit-kd": ("wedge", "other"),
}
OTHER_LOOK = ("triangle", "plain")
DEPTH_LOOKS = (
    ("circle", "probe"),
    ("triangle", "plain"),
    ("wedge", "other"),
    ("diamond", "student"),
    ("square", "soft"),
)
HEAD = ("teacher_output", "probe", "student")
CONTROL_WORDS = {
    "prior": "Class frequencies, no input",
    "depth_0": "Probe at depth 0 (embeddings)",
    "shuffled_labels": "Probe on shuffled labels",
    "options_only": "Probe on the options without the question",
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Best strength at each depth for one layout and position."""

    name: str
    mark: str
    tone: str
    rows: tuple[DepthScore, ...]


def write_report(run_dir: Path, examples: Mapping[str, Example]) -> Path:
    """Write ``report.html`` from the files of a run directory and the task's rows by id; returns its path.

    The same files give the same bytes.

    Raises:
        StoreError: a file of the run directory is missing or damaged, or a predicted row is not in ``examples``.
    """
    target = run_dir / "report.html"
    write_text(target, render(read_run(run_dir), examples))
    return target


def render(run: RunData, examples: Mapping[str, Example]) -> str:
    """The page as text."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=PackageLoader("probekd", "report"),
    )
    environment.filters.update(
        pct=pct,
        num=num,
        points=points,
        p_value=p_value,
        duration=duration,
        size=size,
        who=partial(who_words, method=run.config.student.method),
        short=partial(short_words, method=run.config.student.method),
    )
    environment.globals.update(
        look=look,
        mark=charts.legend_mark,
        metric_words=METRIC_WORDS,
        percentage_metrics=("accuracy", "macro_f1"),
        outcome_words=outcome_words,
    )
    main = run.predictions.get(run.main_split, {})
    splits = [run.main_split, *(split for split in run.scores if split != run.main_split)]
    return environment.get_template("page.html.j2").render(
        run=run,
        verdict=judge(run),
        head=headline(run),
        splits=splits,
        comparisons=comparisons(run, splits),
        definitions=charts.mark_definitions(),
        dots=dots(run),
        depth=depth_section(run),
        references=references(run),
        calibration=calibration(main),
        breakdown=breakdown_section(run, main, examples),
        cases=case_section(run, main, examples),
        stages=stage_rows(run),
    )


def headline(run: RunData) -> list[str]:
    """The three predictors, and the most accurate of the students that the run's own one competes with."""
    scores = run.scores[run.main_split]
    others = sorted((who for who in scores if who.startswith("student:")), key=lambda who: -scores[who].accuracy)
    return [who for who in (*HEAD, *others[:1]) if who in scores]


def dots(run: RunData) -> Any:
    """The dot-and-interval plot of the main split's accuracies."""
    rows = [
        charts.Dot(
            name=who_words(who, run.config.student.method),
            value=score.accuracy,
            interval=score.accuracy_ci,
            mark=look(who)[0],
            tone=look(who)[1],
        )
        for who, score in run.scores[run.main_split].items()
    ]
    return charts.dot_intervals(
        rows, title=f"Accuracy on {run.main_split} with 95% intervals", value_format=pct, tick_format=whole_pct
    )


def comparisons(run: RunData, splits: Sequence[str]) -> list[tuple[str, list[Comparison]]]:
    """Paired differences by split, those of one pair together."""
    by_split = [(split, [c for c in run.comparisons if c.split == split]) for split in splits]
    return [(split, sorted(found, key=lambda c: (c.a, c.b))) for split, found in by_split if found]


def curves(run: RunData) -> list[Curve]:
    """A curve for each layout and position, of the strength with the least log-loss at each depth; the chosen one first."""
    chosen = (run.probe.reader.layout, run.probe.reader.position)
    best: dict[tuple[str, str], dict[int, DepthScore]] = {}
    for row in (row for row in run.depths if row.window == 1):
        of_depth = best.setdefault((row.layout, row.position), {})
        if row.depth not in of_depth or row.nll < of_depth[row.depth].nll:
            of_depth[row.depth] = row
    return [
        Curve(
            name=f"{layout} · {position}",
            mark=DEPTH_LOOKS[i % len(DEPTH_LOOKS)][0],
            tone=DEPTH_LOOKS[i % len(DEPTH_LOOKS)][1],
            rows=tuple(of_depth[depth] for depth in sorted(of_depth)),
        )
        for i, ((layout, position), of_depth) in enumerate(
            sorted(best.items(), key=lambda item: (item[0] != chosen, item[0]))
        )
    ]


def depth_section(run: RunData) -> dict[str, Any]:
    """Accuracy and log-loss by depth, with the output readouts as levels and the choice ringed."""
    lines, reader = curves(run), run.probe.reader
    at_choice = [
        row
        for row in run.depths
        if (row.layout, row.position, row.depth, row.l2, row.kind, row.window)
        == (reader.layout, reader.position, reader.depth, reader.l2, reader.family, reader.window)
    ]
    made, hidden = {}, {}
    for metric, style, tick_style in (("accuracy", pct, whole_pct), ("nll", num, plain)):
        best = getattr(run.probe.out_of_fold["teacher_output"], metric)
        values = [getattr(row, metric) for line in lines for row in line.rows] + [best]
        y_range = charts.padded(values)
        levels = [charts.Level(name=readout_name(one), value=getattr(one, metric)) for one in run.probe.output_readouts]
        hidden[metric] = sum(not y_range[0] <= one.value <= y_range[1] for one in levels)
        made[metric] = charts.line_chart(
            [
                charts.Series(
                    name=line.name,
                    mark=line.mark,
                    tone=line.tone,
                    points=tuple((float(row.depth), getattr(row, metric)) for row in line.rows),
                )
                for line in lines
            ],
            title=f"{METRIC_WORDS[metric].capitalize()} of the probe by depth, out of fold",
            x_range=(-0.5, run.probe.depths + 0.5),
            y_range=y_range,
            y_format=style,
            tick_format=tick_style,
            levels=[*levels, charts.Level(name="best output readout", value=best, label="best output readout")],
            chosen=(float(reader.depth), getattr(at_choice[0], metric)) if at_choice else None,
        )
    return {"curves": lines, "charts": made, "hidden": hidden, "depths": sorted({row.depth for row in run.depths})}


def readout_name(one: Figures) -> str:
    """An output readout in words."""
    return one.readout.replace("_", " ") + (", calibrated" if one.calibrated else ", uncalibrated")


def references(run: RunData) -> list[tuple[str, Figures]]:
    """The readouts that the probe is held against, all out of fold on the same labelled rows, then the controls."""
    rows = [(who_words(who, run.config.student.method), one) for who, one in run.probe.out_of_fold.items()]
    rows += [(f"Output readout: {readout_name(one)}", one) for one in run.probe.output_readouts]
    return rows + [
        (f"Control: {lower_first(CONTROL_WORDS.get(name, name))}", one) for name, one in run.probe.controls.items()
    ]


def calibration(main: Mapping[str, Predictions]) -> list[dict[str, Any]]:
    """A reliability diagram for each predictor."""
    made = []
    for who in (who for who in HEAD if who in main):
        bins = breakdown.calibration_bins(main[who])
        mark, tone = look(who)
        chart = charts.reliability(
            bins, title="Reliability: accuracy against confidence, 15 bins", mark=mark, tone=tone
        )
        made.append({"who": who, "bins": bins, "chart": chart})
    return made


def breakdown_section(run: RunData, main: Mapping[str, Predictions], examples: Mapping[str, Example]) -> dict[str, Any]:
    """Confusions (classification) or groups of rows (multiple choice) on the main split."""
    if run.probe.task_kind == "multiple_choice":
        by_options = breakdown.groups(main, examples, lambda e: f"{len(e.options)} options") if main else ()
        by_subject = breakdown.groups(main, examples, lambda e: e.subject or "(none)") if main else ()
        return {
            "kind": "groups",
            "tables": {"options": by_options, "subject": by_subject if len(by_subject) > 1 else ()},
        }
    panels = []
    for who in (who for who in ("probe", "student") if who in main):
        one = main[who]
        labels = breakdown.example_of(examples, one.ids[0], len(one.probs[0])).options
        counts = breakdown.confusion(one, len(labels))
        panels.append(
            {"who": who, "labels": labels, "counts": counts.tolist(), "pairs": breakdown.confused_pairs(counts, labels)}
        )
    matrix = bool(panels) and len(panels[0]["labels"]) <= breakdown.MATRIX_CLASSES
    return {"kind": "matrix" if matrix else "pairs", "panels": panels}


def case_section(
    run: RunData, main: Mapping[str, Predictions], examples: Mapping[str, Example]
) -> list[dict[str, Any]]:
    """Rows that one of teacher output and probe has right and the other wrong."""
    if not {"teacher_output", "probe"} <= set(main):
        return []
    teacher, probe = main["teacher_output"], main["probe"]
    lettered = run.probe.task_kind == "multiple_choice"
    sections = []
    for title, loser, winner in (
        ("Said wrong, read right", teacher, probe),
        ("Said right, read wrong", probe, teacher),
    ):
        total, rows = breakdown.disagreements(loser, winner)
        shown = [
            breakdown.case(
                breakdown.example_of(examples, probe.ids[i], len(probe.probs[i])),
                teacher.probs[i],
                probe.probs[i],
                int(probe.answers[i]),
                lettered=lettered,
            )
            for i in rows
        ]
        sections.append({"title": title, "total": total, "cases": shown})
    return sections


def stage_rows(run: RunData) -> list[dict[str, Any]]:
    """Costs by stage; what a stage records beyond status, seconds, tokens and bytes is listed as it stands."""
    known = ("status", "seconds", "tokens", "bytes")
    return [
        {
            "name": name,
            **{key: stage.get(key) for key in known},
            "more": [f"{key.replace('_', ' ')} {value}" for key, value in sorted(stage.items()) if key not in known],
        }
        for name, stage in run.run.stages.items()
    ]


def look(who: str) -> tuple[str, str]:
    """Mark and tone of a predictor."""
    return LOOKS.get(who, OTHER_LOOK)

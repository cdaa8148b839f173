"""The README.md of a student directory: a model card that says what the student is, and what it is worth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from probekd.config import TeacherConfig
from probekd.files import read_json, write_text
from probekd.methods import has_teacher
from probekd.metrics import Scores
from probekd.student.kinds import StudentKind
from probekd.student.licence import Origin
from probekd.student.model import INFO_FILE, Student, StudentInfo

CARD_FILE = "README.md"
_CARD = """---
{front_matter}---

# Student for {task}

{base}, trained by probekd with the method **{method}** for the task **{task}** on {num_labels} labelled and {num_pool}
unlabelled rows (seed {seed}). `{info_file}` has the rest; probekd is not needed to use the model.

{teacher}

## Use

```python
{usage}
```

{calibration}

## Figures

{figures}

## Limits

{limits}

## Licences

{licences}
"""
_NAMES = {"teacher_output": "the teacher's best output readout", "probe": "the probe on its hidden states"}


@dataclass(frozen=True, kw_only=True)
class Results:
    """What is known of a student once its run has been evaluated.

    Attributes:
        who: The student's name among the scores.
        method: What the run's own student learned by, which is ``student`` among the scores.
        teacher: The model that the run read.
        scores: By split, the scores of everyone.
    """

    who: str
    method: str
    teacher: Origin
    scores: Mapping[str, Mapping[str, Scores]]


def model_card(info: StudentInfo, kind: StudentKind, results: Results | None = None) -> str:
    """The card; without ``results``, one that says that nothing has been measured yet."""
    return _CARD.format(
        front_matter=yaml.safe_dump(_front_matter(info, kind, results), sort_keys=False, allow_unicode=True),
        task=escaped(info.task),
        base=escaped(info.base_model),
        method=escaped(info.method),
        num_labels=info.num_labels_used,
        num_pool=info.num_pool_rows,
        seed=info.seed,
        info_file=INFO_FILE,
        teacher=_teacher(info, results),
        usage=kind.usage,
        calibration=_calibration(info),
        figures=_figures(info, results) if results else "It has not been evaluated yet.",
        limits=_limits(info),
        licences=_licences(info, results),
    )


def write_card(directory: Path, card: str) -> None:
    """Replace a student's card."""
    write_text(directory / CARD_FILE, card)


def complete_cards(run_dir: Path, teacher: TeacherConfig, *, trust_remote_code: bool = False) -> None:
    """Write what a run has measured into the cards of its students.

    Args:
        run_dir: A run directory with metrics.json.
        teacher: The run's.
        trust_remote_code: Run Python code that ships with the students' checkpoints.
    """
    metrics = read_json(run_dir / "metrics.json")
    scores = {split: found for split, found in metrics.items() if split not in ("comparisons", "gate")}
    origin = Origin.of(teacher.model, teacher.revision)
    method = StudentInfo.load(run_dir / "student").method
    for who in next(iter(scores.values())):
        name, _, baseline = who.partition(":")
        if name == "student":
            place = run_dir / (f"baselines/{baseline}/student" if baseline else "student")
            student = Student.load(place, trust_remote_code=trust_remote_code)
            results = Results(who=who, method=method, teacher=origin, scores=scores)
            write_card(place, model_card(student.info, student.model, results))


def escaped(text: str) -> str:
    """Text from data as Markdown that shows it as it is: on one line, without markup, links or HTML."""
    return re.sub(r"([\\`*_\[\]<>&|~#$])", r"\\\1", " ".join(text.split()))


def _front_matter(info: StudentInfo, kind: StudentKind, results: Results | None) -> dict[str, Any]:
    """What the Hub reads."""
    found: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": kind.pipeline_tag}
    if info.base_licence:
        # A licence that the Hub has no name for is "other", and a name of its own.
        name, _, own = info.base_licence.partition(" ")
        found |= {"license": name} | ({"license_name": own} if own else {})
    # A directory's name is no Hub id.
    if "/" in info.base_model:
        found["base_model"] = info.base_model
    found["tags"] = ["probekd", *(["knowledge-distillation"] if has_teacher(info.method) else [])]
    if results:
        name = f"Student for {info.task}"
        found["model-index"] = [{"name": name, "results": _index(info, kind, results)}]
    return found


def _index(info: StudentInfo, kind: StudentKind, results: Results) -> list[dict[str, Any]]:
    """The student's scores in the form of the Hub's evaluation results."""
    names = {"accuracy": "Accuracy", "macro_f1": "Macro F1", "nll": "Log-loss", "ece": "Calibration error"}
    return [
        {
            "task": {"type": kind.pipeline_tag},
            "dataset": {"name": info.task, "type": info.task, "split": split},
            "metrics": [
                {"type": key, "name": name, "value": round(float(scores[results.who][key]), 4)}  # type: ignore[literal-required]
                for key, name in names.items()
            ],
        }
        for split, scores in results.scores.items()
    ]


def _teacher(info: StudentInfo, results: Results | None) -> str:
    """Who taught it."""
    if has_teacher(info.method):
        return f"Its teacher was {escaped(results.teacher.name)}." if results else "Its run has not been evaluated yet."
    if info.num_pool_rows:
        return "It learned from the labels, and from what a student of the labels said of the rest; it had no teacher."
    return "It learned from the labels alone."


def _figures(info: StudentInfo, results: Results) -> str:
    """A table for each split."""
    tables = []
    for split, scores in results.scores.items():
        n = scores[results.who]["n"]
        lines = [
            f"{escaped(split)}, {n} rows, none of which it was trained on{_chosen_on(info, split)}:",
            "",
            "| who | accuracy | 95% interval | log-loss | calibration error |",
            "|---|---|---|---|---|",
        ]
        for who, s in scores.items():
            name = "**this student**" if who == results.who else _name(who, results.method)
            low, high = s["accuracy_ci"]
            lines.append(
                f"| {name} | {s['accuracy']:.3f} | {low:.3f} to {high:.3f} | {s['nll']:.3f} | {s['ece']:.3f} |"
            )
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _chosen_on(info: StudentInfo, split: str) -> str:
    """What else than weights a split decided; figures on it are a little too good."""
    if split != "validation" or info.calibration is None or info.calibration.rows != "validation":
        return ""
    return ", though the number of its epochs and its temperature were chosen on them"


def _name(who: str, main: str) -> str:
    return _NAMES.get(who) or f"a student trained by {escaped(who.partition(':')[2] or main)}"


def _calibration(info: StudentInfo) -> str:
    """What the model's confidence is worth."""
    found = info.calibration
    if not info.history:
        return "It was not trained further: it is a probe of its teacher, and its probabilities are calibrated as the probe's."
    if found is None:
        return "Its probabilities are not calibrated: there were no held-out labels to do so with."
    rows = f"{found.n} {found.rows.replace('held out', 'held-out')} rows"
    effect = f"on {rows} this took its expected calibration error from {found.ece_before:.3f} to {found.ece_after:.3f}"
    if found.folded:
        return f"Its probabilities are calibrated: a temperature of {found.temperature:.3f} is part of its weights; {effect}."
    return (
        f"Divide its logits by {found.temperature:.3f} before the softmax over the options to get calibrated "
        f"probabilities, as `probekd predict` does; {effect}."
    )


def _limits(info: StudentInfo) -> str:
    """What it must not be taken for."""
    choice = (
        "It scores the options that it is given, of which one is taken to be right."
        if info.kind == "multiple_choice"
        else f"It knows {len(info.labels)} labels and gives one of them to any text, whatever the text is about."
    )
    cut = f"; {info.num_cut_rows} training rows were longer and were cut" if info.num_cut_rows else ""
    taught = " What its teacher gets wrong it may have learned too." if has_teacher(info.method) else ""
    return (
        f"- {choice}\n"
        f"- It was trained and measured on one task: rows of another kind, language or time may fare worse.{taught}\n"
        f"- It reads {info.max_length} tokens of a text{cut}."
    )


def _licences(info: StudentInfo, results: Results | None) -> str:
    """Of the models that went into it."""

    def line(what: str, model: Origin) -> str:
        said = escaped(model.licence) if model.licence else "not known here; look at its own card"
        return f"- {what}, {escaped(model.name)}: {said}"

    lines = [line("base model", Origin(name=info.base_model, licence=info.base_licence))]
    if results and has_teacher(info.method):
        lines.append(line("teacher", results.teacher))
        lines.append("\nA teacher's licence may say what models that learn from it may be used for.")
    return "\n".join(lines)

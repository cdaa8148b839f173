from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from probekd.methods import RECIPES, Evidence
from probekd.methods.single import SMOOTHING

Build = Callable[..., tuple[Evidence, np.ndarray]]


def ids(evidence: Evidence) -> tuple[str, ...]:
    return tuple(e.id for e in (*evidence.labelled, *evidence.pool))


def test_gold_targets_are_of_labelled_rows_alone(evidence_of: Build) -> None:
    evidence, _ = evidence_of()
    made = RECIPES["labels"].make(evidence)
    assert made.ids == tuple(e.id for e in evidence.labelled) and set(made.sources) == {"gold"}
    assert [int(p.argmax()) for p in made.probs] == evidence.answers.tolist()
    assert all(p.max() == 1 for p in made.probs)


def test_smoothing_spreads_over_a_rows_own_options(evidence_of: Build) -> None:
    evidence, _ = evidence_of()
    made = RECIPES["label-smoothing"].make(evidence)
    assert made.ids == tuple(e.id for e in evidence.labelled) and set(made.sources) == {"smoothed"}
    for e, p in zip(evidence.labelled, made.probs, strict=True):
        share = SMOOTHING / len(e.options)
        assert sorted(p) == pytest.approx([share] * (len(e.options) - 1) + [1 - SMOOTHING + share])
        assert p.argmax() == e.answer


def test_a_view_is_passed_on_as_it_is(evidence_of: Build) -> None:
    evidence, _ = evidence_of()
    made = RECIPES["probe-kd"].make(evidence)
    assert made.ids == ids(evidence)
    assert made.sources == ("oof",) * 60 + ("pooled",) * 90
    assert made.folds == (*evidence.folds.tolist(), *(-1,) * 90)
    view = evidence.views["probe"]
    for row, e, z in zip((*view.honest, *view.pool), (*evidence.labelled, *evidence.pool), made.logits, strict=True):
        assert z.tolist() == row[: len(e.options)].tolist()


def test_in_sample_targets_do_not_pass_for_out_of_fold(evidence_of: Build) -> None:
    evidence, _ = evidence_of()
    made = RECIPES["probe-kd-in-sample"].make(evidence)
    assert set(made.sources) == {"pooled"} and set(made.folds) == {-1}
    assert made.logits[1].tolist() == evidence.views["probe_in_sample"].honest[1][:3].tolist()


def test_self_training_keeps_gold_labels_and_asks_the_student_about_the_pool(evidence_of: Build) -> None:
    evidence, _ = evidence_of()
    made = RECIPES["self-train"].make(evidence)
    assert made.ids == ids(evidence)
    assert made.sources == ("gold",) * 60 + ("pooled",) * 90
    assert [int(p.argmax()) for p in made.probs[:60]] == evidence.answers.tolist()
    for e, row, z in zip(evidence.pool, evidence.views["student"].pool, made.logits[60:], strict=True):
        assert z.tolist() == row[: len(e.options)].tolist()


def test_less_pool_is_the_first_rows_of_it(evidence_of: Build) -> None:
    evidence, _ = evidence_of()
    some = evidence.first(7)
    assert [e.id for e in some.pool] == [e.id for e in evidence.pool[:7]]
    for name in ("probe-kd", "self-train", "blend-kd"):
        made = RECIPES[name].make(some)  # type: ignore[index]
        whole = RECIPES[name].make(evidence)  # type: ignore[index]
        assert made.ids == whole.ids[:67]
        for a, b in zip(made.logits, whole.logits[:67], strict=True):
            np.testing.assert_array_equal(a, b)
    assert RECIPES["probe-kd"].make(evidence.first(0)).sources == ("oof",) * 60

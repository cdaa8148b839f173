from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from probekd.methods import RECIPES, Evidence
from probekd.methods.blend import MEMBERS, Blend, blend
from probekd.probes.calibrate import fit_temperature, gold_losses

Build = Callable[..., tuple[Evidence, np.ndarray]]


def accuracy(targets: list[np.ndarray], answers: np.ndarray) -> float:
    return float(np.mean([p.argmax() == a for p, a in zip(targets, answers, strict=True)]))


def test_two_sources_that_err_apart_label_the_pool_better_than_each(evidence_of: Build) -> None:
    evidence, hidden = evidence_of(n=150, m=600)
    made = RECIPES["blend-kd"].make(evidence)
    alone = [accuracy(list(evidence.views[name].pool), hidden) for name in MEMBERS]
    assert accuracy(list(made.logits[150:]), hidden) > max(alone) + 0.03
    assert made.sources == ("oof",) * 150 + ("pooled",) * 600


def test_a_source_that_knows_nothing_is_not_listened_to(evidence_of: Build) -> None:
    evidence, _ = evidence_of(n=400, knows=(2.0, 0.0, 0.0))
    weights = Blend.fit(np.stack([evidence.views[name].honest for name in MEMBERS]), evidence.answers).weights
    assert weights[0] > 10 * weights[1:].max()
    assert (weights >= 0).all()


def test_the_pool_gets_what_all_labelled_rows_choose(evidence_of: Build) -> None:
    evidence, _ = evidence_of()
    honest = np.stack([evidence.views[name].honest for name in MEMBERS])
    fitted = Blend.fit(honest, evidence.answers)
    assert fit_temperature(fitted.logits(honest), evidence.answers) == pytest.approx(1, abs=1e-3)
    by_hand = fitted.logits(np.stack([evidence.views[name].pool for name in MEMBERS]))
    for e, row, z in zip(evidence.pool, by_hand, blend(evidence).logits[60:], strict=True):
        np.testing.assert_allclose(z, row[: len(e.options)])


def test_a_labelled_rows_target_does_not_know_its_answer(evidence_of: Build) -> None:
    evidence, _ = evidence_of(ragged=False)
    made = blend(evidence)
    for f in range(5):
        turned = tuple(
            replace(e, answer=(e.answer + 1) % 3) if g == f and e.answer is not None else e
            for e, g in zip(evidence.labelled, evidence.folds, strict=True)
        )
        other = blend(replace(evidence, labelled=turned))
        same = [np.allclose(a, b) for a, b in zip(made.logits[:60], other.logits[:60], strict=True)]
        assert np.array(same)[evidence.folds == f].all()
        assert not np.array(same)[evidence.folds != f].any()


def test_members_that_fit_by_chance_do_not_make_it_much_worse_than_the_best(evidence_of: Build) -> None:
    gaps = []
    for seed in range(8):
        evidence, hidden = evidence_of(n=100, m=400, knows=(1.5, 0.0, 0.0), ragged=False, seed=seed)
        made = np.stack(blend(evidence).logits[100:])
        view = evidence.views["probe"]
        scaled = view.pool / fit_temperature(view.honest, evidence.answers)
        gaps.append(gold_losses(made, hidden).mean() - gold_losses(scaled, hidden).mean())
    assert np.mean(gaps) < 0.02

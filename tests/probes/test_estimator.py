from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from readings import options, rows
from scipy.special import softmax
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probekd.probes.logistic import LogisticProbe, OptionProbe
from probekd.probes.low_rank import LowRankProbe
from probekd.probes.mass_mean import MassMeanProbe, OptionMassMeanProbe
from probekd.probes.mlp import MLPProbe, OptionMLPProbe
from probekd.probes.ridge import OptionRidgeProbe, RidgeProbe

KWAY = [LogisticProbe(l2=0.2, tolerance=1e-5), RidgeProbe(), MassMeanProbe(), LowRankProbe(rank=2), MLPProbe(hidden=8)]
OPTION = [OptionProbe(l2=0.2), OptionRidgeProbe(), OptionMassMeanProbe(), OptionMLPProbe(hidden=8)]


def name(probe: Any) -> str:
    return type(probe).__name__


@pytest.mark.parametrize("probe", [*KWAY, *OPTION], ids=name)
def test_scikit_learns_contract(probe: Any) -> None:
    x, y = rows() if probe in KWAY else options()
    parameters = probe.get_params()
    assert all(getattr(probe, key) == value for key, value in parameters.items())
    twin = clone(probe)
    assert twin.get_params() == parameters and not hasattr(twin, "classes_")
    if "l2" in parameters:
        assert twin.set_params(l2=0.7).l2 == 0.7 and probe.l2 == parameters["l2"]
    kept_x, kept_y = x.copy(), y.copy()
    twin = clone(probe)
    assert twin.fit(x, y) is twin
    assert twin.get_params() == parameters
    np.testing.assert_array_equal(x, kept_x)
    np.testing.assert_array_equal(y, kept_y)
    assert twin.n_features_in_ == x.shape[-1]
    logits, p = twin.decision_function(x), twin.predict_proba(x)
    np.testing.assert_array_equal(clone(probe).fit(x, y).decision_function(x), logits)
    np.testing.assert_allclose(p, softmax(logits, axis=1), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(twin.predict(x), twin.classes_[logits.argmax(1)])
    assert twin.score(x, y) == (twin.predict(x) == y).mean() > 0.5


@pytest.mark.parametrize("probe", OPTION, ids=name)
def test_absent_options_have_no_chance(probe: Any) -> None:
    x, y = options()
    absent = np.isnan(x).any(2)
    probe = clone(probe).fit(x, y)
    assert (np.isneginf(probe.decision_function(x)) == absent).all()
    assert (probe.predict_proba(x)[absent] == 0).all()
    assert not absent[np.arange(len(y)), probe.predict(x)].any()


@pytest.mark.parametrize("probe", KWAY, ids=name)
def test_labels_may_be_anything_and_pipelines_work(probe: Any) -> None:
    x, y = rows()
    names = np.array(["cow", "ant", "bee"])[y]
    fitted = clone(probe).fit(x, names)
    assert list(fitted.classes_) == ["ant", "bee", "cow"]
    assert set(fitted.predict(x)) == {"ant", "bee", "cow"}
    assert cross_val_score(make_pipeline(StandardScaler(), clone(probe)), x, names, cv=3).mean() > 0.5


@pytest.mark.parametrize("probe", [*KWAY, *OPTION], ids=name)
def test_what_scikit_learn_asks_of_bad_input(probe: Any) -> None:
    x, y = rows() if probe in KWAY else options()
    for ask in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(clone(probe), ask)(x)
    fitted = clone(probe).fit(x, y)
    with pytest.raises(ValueError, match="features"):
        fitted.predict(x[..., :-1])
    for bad in (np.inf, np.nan):
        broken = x.copy()
        broken[3, ..., 2] = bad
        for ask in (fitted.predict, lambda x: clone(probe).fit(x, y)):
            with pytest.raises(ValueError, match=r"NaN|infinity"):
                ask(broken)


@pytest.mark.parametrize("probe", OPTION, ids=name)
def test_options_are_as_many_as_a_row_has(probe: Any) -> None:
    x, y = options()
    fitted = clone(probe).fit(x, y)
    more = np.concatenate([np.full((len(x), 3, x.shape[2]), np.nan), x], axis=1)
    np.testing.assert_array_equal(fitted.predict(more), fitted.predict(x) + 3)
    absent = int(np.flatnonzero(np.isnan(x).any((1, 2)))[0])
    wrong = y.copy()
    wrong[absent] = x.shape[1] - 1
    with pytest.raises(
        ValueError, match=rf"row {absent}: its gold option is {x.shape[1] - 1}, and it has no such option"
    ):
        clone(probe).fit(x, wrong)

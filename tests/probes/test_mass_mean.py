from __future__ import annotations

import numpy as np
from readings import centred, features_of, options, rows, training_sets
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

from probekd.probes import logistic
from probekd.probes.mass_mean import MassMeanProbe, OptionMassMeanProbe, solve


def test_logits_are_distances_to_the_class_means_and_the_log_of_their_shares() -> None:
    x, y = rows()
    train = training_sets(len(x))
    for ours, mask in zip(solve(features_of(x, 3), y, train).logits(x), train, strict=True):
        scaler = StandardScaler().fit(x[mask])
        z, inside = scaler.transform(x), scaler.transform(x[mask])
        means = np.stack([inside[y[mask] == c].mean(0) for c in range(3)])
        share = np.bincount(y[mask]) / mask.sum()
        expected = -0.5 * ((z[:, None] - means) ** 2).sum(2) + np.log(share)
        np.testing.assert_allclose(centred(ours), centred(expected), rtol=1e-4, atol=1e-5)


def test_classes_of_one_size_are_told_apart_as_by_the_nearest_centroid() -> None:
    x, _ = rows(n=90)
    y = np.arange(90) % 3
    x[:, 4] += y
    scaler = StandardScaler().fit(x)
    expected = NearestCentroid().fit(scaler.transform(x), y).predict(scaler.transform(x))
    np.testing.assert_array_equal(MassMeanProbe().fit(x, y).predict(x), expected)


def test_a_class_that_a_training_set_lacks_is_unlikely_but_not_impossible() -> None:
    x, y = rows()
    (logits,) = solve(features_of(x, 3), y, (y != 1)[None]).logits(x)
    assert np.isfinite(logits).all()
    assert (logits.argmax(1) != 1).all()


def test_option_scores_follow_the_mean_difference_of_the_gold_option() -> None:
    x, y = options()
    train = training_sets(len(x))
    for ours, mask in zip(solve(features_of(x, 5), y, train).logits(np.nan_to_num(x)), train, strict=True):
        there = x[mask][~np.isnan(x[mask]).any(2)]
        z = (x - there.mean(0)) / there.std(0)
        differences = [
            (row[gold] - np.nanmean(row, axis=0)) / (~np.isnan(row).any(1)).sum()
            for row, gold in zip(z[mask], y[mask], strict=True)
        ]
        expected = centred(z @ np.mean(differences, axis=0))
        np.testing.assert_allclose(centred(np.where(np.isnan(expected), np.nan, ours)), expected, rtol=1e-4, atol=1e-5)


def test_logistic_probes_under_a_huge_penalty_point_the_same_way() -> None:
    def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0))

    x = StandardScaler().fit_transform(np.delete(rows(n=90)[0], 2, axis=1))
    y = np.arange(90) % 3
    ours = MassMeanProbe().fit(x, y).coef_
    np.testing.assert_allclose(
        cosines(ours, logistic.LogisticProbe(l2=1e5, tolerance=1e-9).fit(x, y).coef_), 1, atol=1e-6
    )
    z, gold = options()
    z = z[:, :2]  # every row with as many options
    z, gold = z[gold < 2] / [1, 1, 200, 1, 1, 1], gold[gold < 2]
    ours = OptionMassMeanProbe().fit(z, gold).coef_
    theirs = logistic.OptionProbe(l2=1e5, tolerance=1e-9).fit(z, gold).coef_
    scale = z.reshape(-1, 6).std(0)[:, None]
    np.testing.assert_allclose(cosines(ours * scale, theirs * scale), 1, atol=1e-6)

"""The scikit-learn contract: what K-way and option probes of every family have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y

from probekd.probes.features import Features, LinearFit


class ProbeEstimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fits in float64; a family says how it learns, and how it scores."""

    @abstractmethod
    def _learn(self, features: Features, answers: np.ndarray) -> None:
        """Fit to all rows at the estimator's own parameters, and set what is learned."""

    @abstractmethod
    def _scores(self, x: np.ndarray) -> np.ndarray:
        """Scores (n, K) of states (n, d), or (n, k) of (n, k, d)."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Probabilities (n, K); raises NotFittedError before ``fit``; 0 for absent options."""
        return softmax_rows(self.decision_function(X))

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Most probable label of each row, or the index of its most probable option."""
        best = self.decision_function(X).argmax(1)
        return np.asarray(self.classes_[best])


class KWayEstimator(ProbeEstimator):
    """One state a row, a score for each class."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:  # noqa: N803
        """Learn from states (n, d) and labels (n,) of any kind."""
        x, y = check_X_y(X, y, dtype=np.float64)
        self.classes_, answers = np.unique(y, return_inverse=True)
        self.n_features_in_ = x.shape[1]
        present = np.ones((len(x), len(self.classes_)), dtype=bool)
        self._learn(Features(x, present, torch.float64), answers)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Logits (n, K), of two classes too; scikit-learn's own give one column there.

        Raises:
            NotFittedError: before ``fit``.
            ValueError: NaN, infinity, or another number of features.
        """
        check_is_fitted(self)
        return self._scores(_like_fitted(self, check_array(X, dtype=np.float64)))


class OptionEstimator(ProbeEstimator):
    """One state for each option, one score each.

    X is (n, k, d) with NaN in every feature of the options that a row does not have; y holds 0-based option indices.
    """

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:  # noqa: N803
        """Learn from option states (n, k, d) and gold options (n,); raises ValueError where a row has no such option."""
        x, present = _options(X)
        answers = np.asarray(y)
        self.n_features_in_ = x.shape[2]
        self.classes_ = np.arange(x.shape[1])
        there = (answers >= 0) & (answers < x.shape[1])
        absent = np.flatnonzero(~(there & present[np.arange(len(x)), np.where(there, answers, 0)]))
        if len(absent):
            raise ValueError(f"row {absent[0]}: its gold option is {answers[absent[0]]}, and it has no such option")
        self._learn(Features(x, present, torch.float64), answers)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Scores (n, k), of any number of options; -inf for absent ones. Raises as ``KWayEstimator`` does."""
        check_is_fitted(self)
        x, present = _options(X)
        return np.where(present, self._scores(_like_fitted(self, x)), -np.inf)

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Index of each row's most probable option; a row may have more options than those that were learned from."""
        return np.asarray(self.decision_function(X).argmax(1))


def _options(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Option states (n, k, d) with zeros where an option is absent, and (n, k) bool: which are there."""
    x = np.asarray(states, dtype=np.float64)
    missing = np.isnan(x)
    if (partly := missing.any(axis=2) & ~missing.all(axis=2)).any() or np.isinf(x).any():
        row = np.argwhere(partly | np.isinf(x).any(axis=2))[0]
        raise ValueError(
            f"row {row[0]}, option {row[1]}: its state has NaN or infinity in some features; all NaN = absent"
        )
    return np.where(missing, 0.0, x), np.asarray(~missing.all(axis=2))


def _like_fitted(estimator: Any, x: np.ndarray) -> np.ndarray:
    if x.shape[-1] != estimator.n_features_in_:
        raise ValueError(f"states have {x.shape[-1]} features, and the probe was fitted to {estimator.n_features_in_}")
    return x


class Linear(ProbeEstimator):
    """Learns ``coef_`` (d, outputs) and ``intercept_`` (outputs,), with one output for an option scorer."""

    @abstractmethod
    def _solve(self, features: Features, answers: np.ndarray, train: np.ndarray) -> LinearFit:
        """Fit the training sets (1, n)."""

    def _learn(self, features: Features, answers: np.ndarray) -> None:
        fit = self._solve(features, answers, np.ones((1, features.n), dtype=bool))
        self.coef_ = fit.weight[0].numpy()
        self.intercept_ = fit.bias[0].numpy()

    def _scores(self, x: np.ndarray) -> np.ndarray:
        scores = x @ self.coef_ + self.intercept_
        return np.asarray(scores[..., 0] if x.ndim == 3 else scores)


def softmax_rows(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))

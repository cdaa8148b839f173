"""The scikit-learn contract: what K-way and option probes of every family have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin

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
        """Probabilities (n, K); 0 for absent options."""
        return softmax_rows(self.decision_function(X))

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Most probable label of each row, or the index of its most probable option."""
        return np.asarray(self.classes_[self.decision_function(X).argmax(1)])


class KWayEstimator(ProbeEstimator):
    """One state a row, a score for each class."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:  # noqa: N803
        """Learn from states (n, d) and labels (n,) of any kind."""
        self.classes_, answers = np.unique(y, return_inverse=True)
        self.n_features_in_ = np.shape(X)[1]
        present = np.ones((len(X), len(self.classes_)), dtype=bool)
        self._learn(Features(np.asarray(X, dtype=np.float64), present, torch.float64), answers)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Logits (n, K)."""
        return self._scores(np.asarray(X, dtype=np.float64))


class OptionEstimator(ProbeEstimator):
    """One state for each option, one score each.

    X is (n, k, d) with NaN in every feature of the options that a row does not have; y holds 0-based option indices.
    """

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:  # noqa: N803
        """Learn from option states (n, k, d) and gold options (n,)."""
        present = ~np.isnan(X).any(axis=2)
        self.n_features_in_ = np.shape(X)[2]
        self.classes_ = np.arange(np.shape(X)[1])
        x = np.nan_to_num(np.asarray(X, dtype=np.float64))
        self._learn(Features(x, present, torch.float64), np.asarray(y))
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Scores (n, k); -inf for absent options."""
        scores = self._scores(np.nan_to_num(np.asarray(X, dtype=np.float64)))
        return np.where(np.isnan(X).any(axis=2), -np.inf, scores)


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

"""The scikit-learn contract of linear probes: what K-way and option probes of every family have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin

from probekd.probes.features import Features, LinearFit


class _LinearEstimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fits in float64; a family says how it solves one training set."""

    @abstractmethod
    def _solve(self, features: Features, answers: np.ndarray, train: np.ndarray) -> LinearFit:
        """Fit the training sets (1, n) at the estimator's own parameters."""

    def _learn(self, x: np.ndarray, answers: np.ndarray, present: np.ndarray) -> None:
        features = Features(np.asarray(x, dtype=np.float64), present, torch.float64)
        fit = self._solve(features, answers, np.ones((1, len(x)), dtype=bool))
        self.coef_ = fit.weight[0].numpy()
        self.intercept_ = fit.bias[0].numpy()


class KWayEstimator(_LinearEstimator):
    """One state a row, a score for each class."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:  # noqa: N803
        """Learn from states (n, d) and labels (n,) of any kind."""
        self.classes_, answers = np.unique(y, return_inverse=True)
        self.n_features_in_ = np.shape(X)[1]
        self._learn(X, answers, np.ones((len(X), len(self.classes_)), dtype=bool))
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Logits (n, K)."""
        return np.asarray(np.asarray(X, dtype=np.float64) @ self.coef_ + self.intercept_)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Probabilities (n, K)."""
        return softmax_rows(self.decision_function(X))

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Most probable label of each row."""
        return np.asarray(self.classes_[self.decision_function(X).argmax(1)])


class OptionEstimator(_LinearEstimator):
    """One state for each option, one score each.

    X is (n, k, d) with NaN in every feature of the options that a row does not have; y holds 0-based option indices.
    """

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:  # noqa: N803
        """Learn from option states (n, k, d) and gold options (n,)."""
        present = ~np.isnan(X).any(axis=2)
        self.n_features_in_ = np.shape(X)[2]
        self.classes_ = np.arange(np.shape(X)[1])
        self._learn(np.nan_to_num(X), np.asarray(y), present)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Scores (n, k); -inf for absent options."""
        scores = np.nan_to_num(X) @ self.coef_[:, 0] + self.intercept_[0]
        return np.where(np.isnan(X).any(axis=2), -np.inf, scores)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Probabilities (n, k); 0 for absent options."""
        return softmax_rows(self.decision_function(X))

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Index of the most probable option of each row."""
        return np.asarray(self.decision_function(X).argmax(1))


def softmax_rows(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))

"""One training set's rows in the axes of their own variance: as many of them as there are rows, where that is fewer.

A probe's weights are a sum of its training rows (the representer theorem), so nothing is lost, and along these axes the
Hessian's guess is diagonal. What it costs is one factorisation a training set, which many classes make good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from probekd.probes.features import Features, principal

# Weights of one problem, from which on training sets are solved one by one: in a batch of all of them, each vector of the
# solver would be several megabytes.
CROWDED = 2**14


# Products of rows and weights that one symmetric factorisation takes the time of, for each of its rank squared (20 against
# the 4 of a pass there and back), and passes that a solution takes.
FACTORISATION, PASSES = 5, 40


def own_axes_pay(features: Features, weights: Tensor, strengths: int) -> bool:
    """Whether training sets (T, n) are better solved one by one, each at some strengths.

    They are where they have so few rows that working in as many axes makes good the factorisation.
    """
    if features.options or features.outputs * features.d < CROWDED:
        return False
    rank = int((weights > 0).sum(1).max())
    return FACTORISATION * rank**2 < PASSES * features.outputs * strengths * (features.d - rank)


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnAxes:
    """What ``logistic`` asks of ``Features``, of R rows; they need no standardisation any more.

    Attributes:
        x: (R, r) their places along the axes.
        rows: (R,) their numbers among all rows.
        axes: (d, r), on features standardised by the training set.
        variance: (r,) along each axis.
        present: (R, K) bool.
    """

    x: Tensor
    rows: Tensor
    axes: Tensor
    variance: Tensor
    present: Tensor
    options = False

    @classmethod
    def of(cls, features: Features, weights: Tensor, mean: Tensor, scale: Tensor) -> OwnAxes:
        """Turn the rows of a training set.

        Args:
            features: K-way features of all n rows.
            weights: (n,) of each row; 0 = it is not in the set.
            mean: (d,) of the set.
            scale: (d,) of the set.
        """
        rows = weights.nonzero()[:, 0]
        x = torch.cat([(block[weights[where] > 0] - mean) / scale for where, block in features.blocks()])
        share = (weights[rows] / weights.sum()).sqrt()[:, None]
        # Small variances, which weak penalties let count, are lost when squares are summed in float32.
        axes, variance = principal((x * share).double())
        axes = axes.to(x.dtype)
        return cls(x=x @ axes, rows=rows, axes=axes, variance=variance.to(x.dtype), present=features.present[rows])

    @property
    def d(self) -> int:
        """r, the number of axes."""
        return self.x.shape[1]

    @property
    def classes(self) -> int:
        """K."""
        return self.present.shape[1]

    @property
    def outputs(self) -> int:
        """K: a score for each class."""
        return self.classes

    @property
    def dtype(self) -> torch.dtype:
        """Of all that is computed."""
        return self.x.dtype

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows at once."""
        yield slice(0, len(self.x)), self.x

"""Rows that are variants of one question: reworded, or with other numbers in it.

Data sets are grown by rewriting questions (half of AQuA-RAT's training rows have a near twin among a thousand of
them). With twins on both sides of a fold a probe recalls answers, and out-of-fold figures promise what no new row keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from probekd.tasks.base import Example, duplicate_keys, normalise

# Cosine of questions from which they count as variants. Of AQuA-RAT's rows it brings out-of-fold accuracies near
# held-out ones (docs/probes.md); of MMLU's, ARC's and Banking77's it joins at most two in a hundred.
LEAST_SIMILARITY = 0.8
# Of fewer words than this one more or less makes another question.
LEAST_WORDS = 6


def variant_keys(examples: Sequence[Example]) -> list[str]:
    """A key for each row; rows with equal keys ask the same thing, or nearly so, in nearly the same words.

    Questions are alike by the cosine of the inverse document frequencies of their words, so that words which every row
    has count for little, and likeness is passed on from row to row. A set phrase, which ``duplicate_keys`` tells apart
    by its options, is a variant of nothing, and nor is a question of fewer than ``LEAST_WORDS`` words. Keys do not depend
    on the rows' order.
    """
    keys = duplicate_keys(examples)
    question_of = {
        key: normalise(e.question) for key, e in sorted(zip(keys, examples, strict=True), key=lambda p: p[0])
    }
    asked = Counter(question_of.values())
    distinct = [key for key, question in question_of.items() if asked[question] == 1]
    joined = _components([question_of[key] for key in distinct])
    first: dict[int, str] = {}
    for key, component in zip(distinct, joined, strict=True):
        first.setdefault(component, key)
    variant_of = {key: first[component] for key, component in zip(distinct, joined, strict=True)}
    return [variant_of.get(key, key) for key in keys]


def _components(questions: Sequence[str]) -> list[int]:
    """Number of the group that each question belongs to."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\w+", binary=True)
    if not any(map(vectorizer.build_analyzer(), questions)):
        return list(range(len(questions)))
    vectors = vectorizer.fit_transform(questions)
    vectors.data[np.repeat(np.diff(vectors.indptr) < LEAST_WORDS, np.diff(vectors.indptr))] = 0
    vectors.eliminate_zeros()
    one, other = _similar_pairs(vectors)
    n = len(questions)
    links = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(n, n))
    return list(map(int, connected_components(links, directed=False)[1]))


def _similar_pairs(vectors: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows i < j of a sparse matrix, each of length one, whose cosine is at least ``LEAST_SIMILARITY``.

    Only pairs that share one of the heaviest words of i are looked at: without those, what is left of i is shorter than
    the cosine asked for (prefix filtering: Bayardo, Ma and Srikant 2007, WWW, 131).
    """
    heavy = vectors.tocsr(copy=True)
    for start, end in zip(heavy.indptr[:-1], heavy.indptr[1:], strict=True):
        weights = heavy.data[start:end]
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order] ** 2) - weights[order] ** 2
        weights[order[1 - before < LEAST_SIMILARITY**2]] = 0
    heavy.eliminate_zeros()
    shared = (heavy @ vectors.T).tocoo()
    # A pair may be found from either of its rows.
    pairs = np.unique(np.sort(np.stack([shared.row, shared.col]), axis=0), axis=1)
    one, other = pairs[:, pairs[0] < pairs[1]]
    alike = np.asarray(vectors[one].multiply(vectors[other]).sum(1)).ravel() >= LEAST_SIMILARITY
    return one[alike], other[alike]

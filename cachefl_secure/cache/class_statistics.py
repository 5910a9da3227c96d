"""Class sums and Gram matrix: all that a closed-form head needs to know of the records. Plain sums, so they add up over silos.

Whatever way the records are dealt out to silos, the sums are the same; so are the heads that are solved from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.cache.features import FeatureSet

Matrix = NDArray[np.float64]

_NEGLIGIBLE = 1e-9


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ClassStatistics:
    """Sums over all records of all silos, in units of features of unit norm.

    Raises:
        ValueError: shapes disagree, a value is not finite, or the Gram matrix is not symmetric.
    """

    class_sums: Matrix
    """(N, C): of the features of each class."""
    gram: Matrix
    """(C, C), symmetric: sum of f f^T. With noise it need not be positive definite."""
    noise_std: float = 0.0
    """Of the noise in each entry of either, in the upper triangle of the latter. Public. 0: exact."""
    counts: Matrix | None = None
    """(N,): records of each class, where they are known. A release does not tell them."""

    def __post_init__(self) -> None:
        sums, gram = self.class_sums, self.gram
        if sums.ndim != 2 or 0 in sums.shape or gram.shape != (sums.shape[1],) * 2:
            raise ValueError("expected class sums (N, C) and a Gram matrix (C, C)")
        if not (np.isfinite(sums).all() and np.isfinite(gram).all() and np.array_equal(gram, gram.T)):
            raise ValueError("class sums and Gram matrix must be finite, the latter symmetric")
        if not 0.0 <= self.noise_std < math.inf:
            raise ValueError("noise_std must be finite and not negative")
        if self.counts is not None and (self.counts.shape != sums.shape[:1] or not (self.counts >= 0).all()):
            raise ValueError("expected counts (N,), none negative")

    @property
    def number_of_classes(self) -> int:
        """N."""
        return int(self.class_sums.shape[0])

    @property
    def feature_dim(self) -> int:
        """C."""
        return int(self.class_sums.shape[1])

    @property
    def noise_edge(self) -> float:
        """2 noise_std sqrt(C): how far the noise moves an eigenvalue of the Gram matrix (Wigner's semicircle)."""
        return 2.0 * self.noise_std * math.sqrt(self.feature_dim)


def statistics_of_records(records: FeatureSet, classes: int, *, with_counts: bool = False) -> ClassStatistics:
    """Exact sums of float32 features, made in float64.

    Raises:
        ValueError: a label beyond the classes.
    """
    features, labels = records.features.cpu().double().numpy(), records.labels.cpu().numpy()
    if labels.size and labels.max() >= classes:
        raise ValueError(f"a label is not below {classes}")
    sums = np.zeros((classes, features.shape[1]))
    np.add.at(sums, labels, features)
    gram = features.T @ features
    counts = np.bincount(labels, minlength=classes).astype(np.float64) if with_counts else None
    return ClassStatistics(sums, (gram + gram.T) / 2, counts=counts)


def added(parts: Sequence[ClassStatistics]) -> ClassStatistics:
    """The statistics of all silos together. Their noise is independent, so its variances add up."""
    counts = [part.counts for part in parts]
    known = all(each is not None for each in counts)
    return ClassStatistics(
        np.sum([part.class_sums for part in parts], axis=0),
        np.sum([part.gram for part in parts], axis=0),
        math.sqrt(sum(part.noise_std**2 for part in parts)),
        np.sum(cast("list[Matrix]", counts), axis=0) if known else None,
    )


def record_counts(statistics: ClassStatistics) -> Matrix:
    """(N,): records of each class; where they were not counted, as the sums tell them.

    Features of unit norm make the Gram matrix's trace the number of all records. Its share of each class is
    ``s_c . w`` with the ``w`` for which ``f . w`` is nearest to 1 over all records (CLIP's features lie in a narrow cone, so
    it nearly is). With noise the counts are drawn to their mean as far as its variance explains how they differ.
    """
    if statistics.counts is not None:
        return statistics.counts
    sums, classes = statistics.class_sums, statistics.number_of_classes
    records = max(float(np.trace(statistics.gram)), 0.0)
    values, vectors = eigen(statistics.gram)
    damped = values + statistics.noise_edge + _NEGLIGIBLE * max(records, 1.0)
    ones = vectors @ ((vectors.T @ sums.sum(axis=0)) / damped)
    counts: Matrix = sums @ ones
    noise_variance, mean = statistics.noise_std**2 * float(ones @ ones), float(counts.mean())
    if noise_variance:
        variance = float(((counts - mean) ** 2).mean())
        told = 1.0 - noise_variance / variance if variance > noise_variance else 0.0
        counts = mean + (counts - mean) * told
    counts = np.maximum(counts, 0.0)
    total = float(counts.sum())
    return counts * (records / total) if total > 0 else np.full(classes, records / classes)


def eigen(symmetric: Matrix) -> tuple[Matrix, Matrix]:
    """Eigenvalues, those below 0 raised to it, and eigenvectors: of the nearest matrix that sums of squares can be."""
    values, vectors = np.linalg.eigh(symmetric)
    return np.maximum(values, 0.0), vectors

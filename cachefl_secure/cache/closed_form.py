"""Linear heads solved from class sums and Gram matrix, in one go: ridge regression and Gaussian discriminant analysis.

    ridge   (G + lambda I) W^T = S^T, no bias                      Fed3R (Fani et al. 2024)
    GDA     W = (mu - mean) P,  b = -(mu P mu^T - mean P mean^T) / 2,  P the precision   Wang et al. (2024)

S (N, C) class sums, G (C, C) Gram matrix, mu (N, C) class means, ``mean`` (C,) that of all records. Both are functions of
the sums: what silos add up is the same whatever way the records are dealt out, and so is the head. Of noised sums they are
post-processing. The noise's variance is public, and regularises both.

A head alone classifies by ``W f + b``; fused with a cache it adds ``gamma * (W f + b)`` to the logits, once it is as loud as
they are. It says 0 of a class without records, so the text and the cache decide there.

LAPACK's last bits differ between machines. So no digest is ever made of a head: parties agree on sums, and solve.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cachefl_secure.cache.class_statistics import ClassStatistics, Matrix, eigen, record_counts

DEFAULT_REGULARISER = 0.1
"""Lambda without noise, in records: what one record in every direction would add to the Gram matrix."""


class HeadKind(enum.StrEnum):
    """Which head is solved from the sums."""

    RIDGE = "ridge"
    GDA = "gda"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LinearHead:
    """``weight`` (N, C) and ``bias`` (N,), both float32.

    Raises:
        ValueError: shapes disagree, or a value is not finite.
    """

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError("expected weight (N, C) and bias (N,)")
        if not (torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise ValueError("weight and bias must be finite")

    def scores(self, features: Tensor) -> Tensor:
        """(b, N) for features (b, C), in their dtype and on their device."""
        return functional.linear(features, self.weight.to(features), self.bias.to(features))


def solve_head(
    kind: HeadKind,
    statistics: ClassStatistics,
    *,
    regulariser: float = DEFAULT_REGULARISER,
    prototypes: Tensor | None = None,
) -> LinearHead:
    """The head of this kind. ``regulariser`` is for ridge, ``prototypes`` for GDA."""
    match kind:
        case HeadKind.RIDGE:
            return ridge_head(statistics, regulariser)
        case HeadKind.GDA:
            return gda_head(statistics, prototypes)


def ridge_head(statistics: ClassStatistics, regulariser: float = DEFAULT_REGULARISER) -> LinearHead:
    """Ridge regression to one-hot labels, with lambda = ``regulariser`` and as much more as noise moves eigenvalues.

    Raises:
        ValueError: a regulariser that is not positive: directions without records would have no solution.
    """
    if not regulariser > 0:
        raise ValueError("regulariser must be positive")
    values, vectors = eigen(statistics.gram)
    weight = (statistics.class_sums @ vectors / (values + regulariser + statistics.noise_edge)) @ vectors.T
    return _head(weight, np.zeros(statistics.number_of_classes))


def gda_head(statistics: ClassStatistics, prototypes: Tensor | None = None) -> LinearHead:
    """Log-odds of Gaussians with one covariance, against a class in the middle of all records; all classes equally likely.

    ``prototypes`` (N, C), public, e.g. ``class_prototypes``: where noise covers a class's mean, it is drawn to its
    prototype, moved so that the prototypes' middle is that of the records. Without, to that middle.
    """
    counts = record_counts(statistics)
    records = float(counts.sum())
    if records < 2:
        return _head(np.zeros_like(statistics.class_sums), np.zeros(statistics.number_of_classes))
    middle = statistics.class_sums.sum(axis=0) / records
    means = _class_means(statistics, counts, middle, prototypes)
    values, vectors = eigen(_scatter_within(statistics, counts))
    # The paper's C pinv((n - 1) S + tr(S) I), times (n - 1) / C: then scores are log-odds for any number of records.
    # Noise in G moves eigenvalues as far as its edge; as much again for that in the sums.
    shrinkage = float(values.sum()) / (records - 1) + 2 * statistics.noise_edge
    if (
        shrinkage == 0
    ):  # one record a class: nothing is known of how they scatter, but that features have norm 1
        shrinkage = records / statistics.feature_dim
    precision = (vectors * ((records - 1) / (values + shrinkage))) @ vectors.T
    weight = (means - middle) @ precision
    return _head(weight, -((means + middle) * weight).sum(axis=1) / 2)


def as_loud_as(head: LinearHead, logits: Tensor, features: Tensor) -> LinearHead:
    """The head times a number, so that its scores of these features (b, C) spread as those logits (b, N) do.

    Text classifiers and caches are overconfident by unlike factors, and regularisation shrinks heads: only so does one gamma
    mean the same for every model, kind of head and noise. A head that says nothing stays as it is.
    """
    own = _spread(head.scores(features))
    factor = _spread(logits) / own if own > 0 else 1.0
    return LinearHead(head.weight * factor, head.bias * factor)


def _spread(scores: Tensor) -> float:
    scores = scores.double()
    return float((scores - scores.mean(dim=1, keepdim=True)).square().mean().sqrt())


def class_prototypes(keys: Tensor, labels: Tensor, text_classifier: Tensor) -> Tensor:
    """(N, C) float32: the mean of each class's cache keys; of a class without, its text feature where keys would be."""
    classes = text_classifier.shape[0]
    sums = torch.zeros_like(text_classifier).index_add_(0, labels, keys)
    counts = torch.bincount(labels, minlength=classes).unsqueeze(1)
    moved = text_classifier + (keys.mean(dim=0) - text_classifier.mean(dim=0))
    return torch.where(counts > 0, sums / counts.clamp(min=1), moved)


def fused(logits: Tensor, head: LinearHead, features: Tensor, gamma: float) -> Tensor:
    """Logits (b, N) of a cache model plus ``gamma * (W f + b)``."""
    return logits + gamma * head.scores(features)


def _class_means(
    statistics: ClassStatistics, counts: Matrix, middle: Matrix, prototypes: Tensor | None
) -> Matrix:
    """Drawn to targets as Efron and Morris do: mean = target + w_c (x_c - target), w_c = t / (t + v_c), x_c = S_c / n_c.

    v_c = (noise_std / n_c)^2 is the variance of the noise in an entry of x_c, t that of true means around their targets:
    what all classes together show beyond noise, 0 if nothing. Without noise w_c = 1, for classes with records.
    """
    given = np.zeros_like(middle) if prototypes is None else prototypes.double().cpu().numpy()
    target = np.broadcast_to(given, statistics.class_sums.shape)
    target = target + (middle - target.mean(axis=0))
    at_least_one = np.maximum(counts, 1.0)[:, None]
    away = statistics.class_sums / at_least_one - target
    kept = (counts > 0)[:, None].astype(np.float64)
    if statistics.noise_std:
        variance = (statistics.noise_std / at_least_one) ** 2
        beyond = float(((away**2) / variance - 1.0).mean()) / float((1.0 / variance).mean())
        kept *= max(beyond, 0.0) / (max(beyond, 0.0) + variance)
    return np.asarray(target + kept * away, np.float64)


def _scatter_within(statistics: ClassStatistics, counts: Matrix) -> Matrix:
    """(C, C): G - sum of n_c mu_c mu_c^T. What noise in S takes away too much on average is given back."""
    sums, at_least_one = statistics.class_sums, np.maximum(counts, 1.0)
    scatter = statistics.gram - (sums.T / at_least_one) @ sums
    scatter += statistics.noise_std**2 * float((1.0 / at_least_one).sum()) * np.eye(statistics.feature_dim)
    return np.asarray((scatter + scatter.T) / 2, np.float64)


def _head(weight: Matrix, bias: Matrix) -> LinearHead:
    return LinearHead(torch.from_numpy(weight).float(), torch.from_numpy(bias).float())

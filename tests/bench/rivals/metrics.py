"""One set of figures for every method, from its probabilities on the test records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cachefl_secure.cache.features import FeatureSet

BINS = 15


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares in [0, 1]."""

    top1: float
    macro_f1: float
    """Mean F1 over classes that occur among labels or predictions, as scikit-learn does."""
    worst_silo: float
    calibration_error: float


def quality(probabilities: Tensor, labels: Tensor, silos: Sequence[FeatureSet]) -> Quality:
    """``probabilities`` (n, N). Of equal ones the lower class wins."""
    predicted = probabilities.argmax(dim=1)
    table = confusion(predicted, labels, probabilities.shape[1])
    return Quality(
        top1=float((predicted == labels).double().mean()),
        macro_f1=macro_f1(table),
        worst_silo=worst_silo(recall(table), silos),
        calibration_error=calibration_error(probabilities, labels),
    )


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(N, N) float64: records by label (row) and prediction."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes).double()


def macro_f1(table: Tensor) -> float:
    there = table.sum(dim=0) + table.sum(dim=1)
    return float((2 * table.diagonal() / there)[there > 0].mean())


def recall(table: Tensor) -> Tensor:
    """(N,): nan of a class without test records."""
    return table.diagonal() / table.sum(dim=1)


def worst_silo(recalls: Tensor, silos: Sequence[FeatureSet]) -> float:
    """Accuracy that the worst-served silo can expect on test records with its own mix of classes.

    For each silo: recall of each class on the common test set, weighted by the silo's histogram of labels;
    classes without test records are left out. The least over silos that have a record left.
    """
    counted = recalls.isfinite()
    served = []
    for records in silos:
        histogram = torch.bincount(records.labels, minlength=len(recalls)).double() * counted
        if histogram.sum() > 0:
            served.append(float((histogram * recalls.nan_to_num()).sum() / histogram.sum()))
    return min(served)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): |accuracy - confidence| over equal bins, weighted by records."""
    confidence, predicted = probabilities.double().max(dim=1)
    hits = (predicted == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (0, 1/15], (1/15, 2/15], ...
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, hits - confidence)
    return float(gap.abs().sum() / len(labels))

"""Features of records with their labels, once or in several augmented views. Private at a silo: never sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UNIT_TOLERANCE = 1e-3  # features kept in fp16 are off by up to 6e-4


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class FeatureSet:
    """``features`` (n, C) float32 with rows of unit norm, ``labels`` (n,) int64, >= 0. n = 0 is legal.

    Raises:
        ValueError: another shape or dtype, a row that is not finite or not of unit norm.
    """

    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.labels.shape != self.features.shape[:1]:
            raise ValueError("expected features (n, C) and labels (n,)")
        _check(self.features, self.labels)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __repr__(self) -> str:  # never print a feature, nor which classes a silo has
        return f"FeatureSet(<{len(self)} records, {self.features.shape[1]}-d>)"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class FeatureViews:
    """``views`` (V, n, C) float32 unit rows: the same n records V times; ``labels`` (n,). V >= 1.

    View 0 is the image as the encoder's own preprocessing takes it, the others are augmented (``augmentation``).

    Privacy: a step of training reads one view of all records, chosen by the number of the round, which is public.
    So one record has one feature in any one step, and whatever it is, its gradient is clipped to the same norm:
    sensitivity, sampling and noise are those of training without views, and nothing changes in the accounting.
    Several views of a record *in one step* would be as many records, and are not to be had here.

    Raises:
        ValueError: another shape or dtype, a row that is not finite or not of unit norm.
    """

    views: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.views.ndim != 3 or not len(self.views) or self.labels.shape != self.views.shape[1:2]:
            raise ValueError("expected views (V, n, C) with V >= 1 and labels (n,)")
        _check(self.views, self.labels)

    def __len__(self) -> int:
        """Records, not views."""
        return self.labels.shape[0]

    @property
    def number_of_views(self) -> int:
        return self.views.shape[0]

    def view(self, index: int) -> FeatureSet:
        """All records once, ``index`` modulo the number of views. Shares its memory."""
        return FeatureSet(self.views[index % self.number_of_views], self.labels)

    def __repr__(self) -> str:
        views, records, dimension = self.views.shape
        return f"FeatureViews(<{records} records, {views} views, {dimension}-d>)"


def _check(features: Tensor, labels: Tensor) -> None:
    if features.dtype != torch.float32 or labels.dtype != torch.int64:
        raise ValueError("features must be float32, labels int64")
    # "not all within" instead of "any outside", so that NaN is refused as well.
    if not bool(((features.norm(dim=-1) - 1).abs() <= UNIT_TOLERANCE).all()):
        raise ValueError("every feature must have unit norm")
    if bool((labels < 0).any()):
        raise ValueError("a label is negative")

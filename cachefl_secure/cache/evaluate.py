"""How well a cache model classifies. Figures on private records are private: show them at the silo only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel, logits, solved_head

_CHUNK = 1024  # records at a time: 64 MB of affinities with 16,000 cache keys


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Figures in [0, 1]; nan where there is nothing to divide by.

    ``top1`` share of records classified correctly; ``macro_f1`` mean F1 over classes that occur among labels
    or predictions (as scikit-learn does); ``per_class`` recall of each class, nan without records.
    """

    top1: float
    macro_f1: float
    per_class: tuple[float, ...]
    records: int


def predict(model: CacheModel, features: Tensor) -> Tensor:
    """Probabilities (n, N) for features (n, C)."""
    return torch.cat(list(_probabilities(model, features)))


def _probabilities(model: CacheModel, features: Tensor) -> Iterator[Tensor]:
    with torch.no_grad():
        for chunk in torch.split(features, _CHUNK):
            yield torch.softmax(logits(model, chunk), dim=1)


def evaluate(model: CacheModel, records: FeatureSet) -> Accuracy:
    """Accuracy of the model. Of equal logits the lower class wins.

    Raises:
        ValueError: a label outside [0, N).
    """
    n = model.number_of_classes
    if bool((records.labels >= n).any()):
        raise ValueError(f"a label is not below {n}")
    predicted = torch.cat([chunk.argmax(dim=1) for chunk in _probabilities(model, records.features)])
    return _accuracy(predicted, records, n)


def _accuracy(predicted: Tensor, records: FeatureSet, n: int) -> Accuracy:
    confusion = torch.bincount(records.labels * n + predicted, minlength=n * n).reshape(n, n).double()
    hits, present, guessed = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    f1 = (2 * hits / (present + guessed))[present + guessed > 0]
    return Accuracy(
        top1=float(hits.sum() / len(records)) if len(records) else math.nan,
        macro_f1=float(f1.mean()) if len(f1) else math.nan,
        per_class=tuple((hits / present).tolist()),
        records=len(records),
    )


def closed_form_alone(model: CacheModel, records: FeatureSet) -> Accuracy:
    """Accuracy of the head of a model with sums, without text and cache.

    Raises:
        ValueError: a model without sums.
    """
    predicted = solved_head(model).scores(records.features).argmax(dim=1)
    return _accuracy(predicted, records, model.number_of_classes)


def zero_shot(model: CacheModel, records: FeatureSet) -> Accuracy:
    """Accuracy of the text classifier alone: alpha = 0, no head."""
    return evaluate(replace(model, alpha=0.0, sums=None), records)

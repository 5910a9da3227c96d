"""The cache of round 1: features of synthetic images as cache keys. Never of private ones: it is public."""

from __future__ import annotations

import torch
from torch import Tensor

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel
from cachefl_secure.cache.origin import UNSTATED, CacheOrigin
from cachefl_secure.errors import ConfigError


def initial_cache(
    synthetic: FeatureSet,
    text_classifier: Tensor,
    *,
    images_per_class: int,
    alpha: float,
    beta: float,
    logit_scale: float = 100.0,
    origin: CacheOrigin = UNSTATED,
) -> CacheModel:
    """The first ``images_per_class`` features of each class as cache keys, in class order.

    ``text_classifier`` (N, C) says how many classes there are.

    Raises:
        ConfigError: a class has fewer images.
    """
    if images_per_class < 1:
        raise ConfigError("cache", "images_per_class", "must be at least 1")
    rows = [
        _rows_of_class(synthetic.labels, label, images_per_class) for label in range(text_classifier.shape[0])
    ]
    order = torch.cat(rows)
    return CacheModel(
        cache_keys=synthetic.features[order],
        key_labels=synthetic.labels[order],
        text_classifier=text_classifier,
        alpha=alpha,
        beta=beta,
        logit_scale=logit_scale,
        origin=origin,
    )


def _rows_of_class(labels: Tensor, label: int, wanted: int) -> Tensor:
    rows = (labels == label).nonzero().flatten()
    if len(rows) < wanted:
        reason = f"class {label} has {len(rows)} synthetic images, {wanted} are needed"
        raise ConfigError("cache", "images_per_class", reason)
    return rows[:wanted]

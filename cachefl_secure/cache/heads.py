"""What is trained of a cache: every cache key by itself, or one residual for all keys of a class.

``keys``            an update has NK * C numbers, a row for every key
``class_residual``  it has N * C: the row of a class is added to all of its K keys. K times fewer numbers to send. Noise
                    moves the K keys of a class together instead of each its own way, so it does not average out
                    among them: fewer numbers alone do not make a class's score less noisy.

Either way the model stays one of cache keys, and the gradient of a record is rank one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cachefl_secure.cache.model import (
    CacheModel,
    KeyRows,
    add_residual,
    add_update,
    affinity_gradient,
    residual_gradient,
)
from cachefl_secure.plan import Trained


def trained_rows(model: CacheModel, trained: Trained) -> int:
    """NK or N; as the plan's property of that name."""
    return model.number_of_keys if trained == "keys" else model.number_of_classes


def row_of_key(model: CacheModel, trained: Trained) -> Tensor | None:
    """(NK,): which row of an update moves a key. None: its own."""
    return None if trained == "keys" else model.key_labels


def rank_one_gradient(
    model: CacheModel, features: Tensor, labels: Tensor, trained: Trained, key_rows: KeyRows | None = None
) -> Tensor:
    """The ``a`` (b, rows) of each record's gradient ``a f^T`` with respect to what is trained; ``key_rows`` stand in."""
    gradient = affinity_gradient if trained == "keys" else residual_gradient
    return gradient(model, features, labels, key_rows)


def moved(model: CacheModel, update: NDArray[np.float64] | Tensor, trained: Trained) -> CacheModel:
    """The model after an update of rows * C numbers, in the same bits wherever it is computed.

    Raises:
        ValueError: another number of entries, or a result that is not finite in float32.
    """
    return add_update(model, update) if trained == "keys" else add_residual(model, update)

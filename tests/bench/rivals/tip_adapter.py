"""Tip-Adapter and Tip-Adapter-F (Zhang et al. 2022) with all records in one place: what a federation is measured against.

    logits = scale * f W^T + alpha * exp(-beta (1 - f F^T)) L

F: real features, not trained (Tip-Adapter), or started so and trained by AdamW for 20 epochs (Tip-Adapter-F). alpha and
beta are searched on validation records, before training and again after it; the published code searches on test records
of ImageNet, and keeps the best epoch on test records everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cachefl_secure.cache.features import FeatureSet
from tests.bench.rivals.federated import Parameters, Training, adamw, federated_averaging
from tests.bench.rivals.method import Outcome, Traffic
from tests.bench.rivals.task import Cell, first_of_each_class

SHOTS = 16
ALPHAS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
BETAS = (1.0, 3.0, 5.5, 10.0, 20.0)
TRAINING = Training(adamw, 1e-3, epochs=1, batch=256)
"""Published: AdamW, 1e-3, batches of 256, 20 epochs (here 20 rounds of one)."""


def training_free(cell: Cell) -> Outcome:
    """Every record of every silo is a key."""
    return outcome(cell, cell.pooled, cell.pooled.features, Traffic())


def trained(cell: Cell) -> Outcome:
    """16 keys a class, trained on all records."""
    start = first_of_each_class(cell.pooled, SHOTS)
    return outcome(cell, start, train_keys(cell, start, (cell.pooled,)), Traffic())


def train_keys(cell: Cell, start: FeatureSet, silos: Sequence[FeatureSet]) -> Tensor:
    """Keys (n, C) that started as ``start`` and were trained by these silos, or by one place."""
    alpha, beta = search(cell, start, start.features)

    def logits(parameters: Parameters, features: Tensor) -> Tensor:
        return scores(cell, start.labels, parameters[0], alpha, beta, features)

    (keys,) = federated_averaging(logits, (start.features,), silos, TRAINING, cell.seed)
    return keys


def scores(cell: Cell, labels: Tensor, keys: Tensor, alpha: float, beta: float, features: Tensor) -> Tensor:
    """Logits (b, N) by the formula above."""
    values = one_hot(labels, len(cell.task.classes)).float()
    cached = torch.exp(-beta * (1 - features @ keys.T)) @ values
    return cell.task.logit_scale * features @ cell.task.text_classifier.T + alpha * cached


def search(cell: Cell, start: FeatureSet, keys: Tensor) -> tuple[float, float]:
    """alpha and beta with the best top-1 on the validation records; of equal ones the smaller alpha."""
    text = cell.task.logit_scale * cell.validation.features @ cell.task.text_classifier.T
    affinity = cell.validation.features @ keys.T
    values = one_hot(start.labels, len(cell.task.classes)).float()
    best = (-1.0, 0.0, 0.0)
    for beta in BETAS:
        cached = torch.exp(-beta * (1 - affinity)) @ values
        for alpha in ALPHAS:
            hits = float(((text + alpha * cached).argmax(1) == cell.validation.labels).double().mean())
            best = max(best, (hits, -alpha, beta))
    return -best[1], best[2]


def outcome(cell: Cell, start: FeatureSet, keys: Tensor, traffic: Traffic) -> Outcome:
    """With alpha and beta searched for these keys."""
    alpha, beta = search(cell, start, keys)
    return Outcome((lambda features: scores(cell, start.labels, keys, alpha, beta, features),), traffic)

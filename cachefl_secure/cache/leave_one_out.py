"""Alpha and beta from the synthetic cache alone: each key is classified by the others.

The keys are public, so this costs no privacy; and no private or test record is looked at. It is as good as the
synthetic images are like the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cachefl_secure.cache.model import CacheModel
from cachefl_secure.errors import OPTIONS, ConfigError

ALPHAS = tuple(round(10.0 ** (step / 4), 2) for step in range(-4, 9))
"""0.1 to 100: weak text classifiers want 100."""
BETAS = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0)
_CHUNK_ENTRIES = 1 << 22  # of affinities in memory at once, 32 MB


@dataclass(frozen=True, slots=True)
class AlphaBeta:
    """What was chosen, and the share of the keys that the others then classify correctly."""

    alpha: float
    beta: float
    accuracy: float


def choose_alpha_beta(model: CacheModel, *, divisor: int = 1) -> AlphaBeta:
    """The pair of the grid that classifies most keys correctly, each with its own entry removed from the cache.

    Of equals the one with the smaller cross-entropy, then the first. The model's own alpha and beta do not
    count. ``divisor`` is K where the plan divides alpha by it: then the alpha returned is before that division.

    Raises:
        ConfigError: a class has one key only, which would leave it none.
    """
    if int(torch.bincount(model.key_labels).min()) < 2:
        reason = "leave-one-out needs at least two synthetic images a class"
        raise ConfigError(OPTIONS, "alpha_beta", reason)
    correct, losses = _grid(model, divisor)
    # Rounded, so that another order of additions on another machine chooses no other pair of equals.
    ranked = [
        (-c, round(loss, 9))
        for c, loss in zip(correct.flatten().tolist(), losses.flatten().tolist(), strict=True)
    ]
    best = min(range(len(ranked)), key=ranked.__getitem__)
    alpha, beta = ALPHAS[best // len(BETAS)], BETAS[best % len(BETAS)]
    return AlphaBeta(alpha, beta, -ranked[best][0] / model.number_of_keys)


def _grid(model: CacheModel, divisor: int) -> tuple[Tensor, Tensor]:
    """(alphas, betas): keys that are classified correctly, and the mean cross-entropy."""
    correct = torch.zeros(len(ALPHAS), len(BETAS), dtype=torch.int64)
    losses = torch.zeros(len(ALPHAS), len(BETAS), dtype=torch.float64)
    keys, text, labels = model.cache_keys.double(), model.text_classifier.double(), model.key_labels
    rows = max(1, _CHUNK_ENTRIES // len(keys))
    for start in range(0, len(keys), rows):
        chunk, wanted = keys[start : start + rows], labels[start : start + rows]
        affinity, zero_shot = chunk @ keys.T, model.logit_scale * chunk @ text.T
        own = torch.arange(len(chunk))
        affinity[own, start + own] = -torch.inf  # its entry becomes exp(-inf) = 0
        for b, beta in enumerate(BETAS):
            by_class = torch.zeros_like(zero_shot)
            by_class.index_add_(1, labels, torch.exp(-beta * (1 - affinity)))
            for a, alpha in enumerate(ALPHAS):
                scores = zero_shot + (alpha / divisor) * by_class
                correct[a, b] += int((scores.argmax(dim=1) == wanted).sum())
                losses[a, b] += float(torch.nn.functional.cross_entropy(scores, wanted, reduction="sum"))
    return correct, losses / len(keys)

"""One release for alpha and beta: how many records each pair classifies rightly, with a share of exact noise.

Whether the cache model with a pair of alpha and beta classifies a record rightly is a function of that record and of
public numbers alone, bit for bit, wherever it stands among others and however many threads compute: what else stood in
the batch must not tip a record whose two best classes are next to equal. So up to the scores all is in whole numbers,
which have one sum in every order:

    features, cache keys, text classifier   rounded to whole numbers of norm at most 2^12 (``statistics.integer_features``)
    affinities, zero-shot scores            their products, below 2^24: float64 holds them exactly
    exp(-beta (1 - affinity))               looked up in a public table of whole steps of 2^-30, one for each affinity
    its sums by class                       whole numbers below 2^53

Only then come two multiplications and an addition for each class, one after another, which IEEE rounds in one way; and
the first of the largest. That may differ from ``cache.model.logits`` where those are equal to about 1 in 10,000.

A record adds ``step`` to the count of every pair that is right about it. With G pairs ``G step^2 <= unit^2`` in whole
numbers (``grid_layout.step_of``), so one record changes the vector of counts by at most ``unit`` in L2, exactly. To each count a silo adds
its share of discrete Gaussian noise. Zero records release noise only; a record whose feature is not finite or has no length
counts as absent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel
from cachefl_secure.grid_layout import count_bound
from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
from cachefl_secure.privacy.mechanism import GridMechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.statistics import integer_features

Pairs = Sequence[tuple[float, float]]
"""(alpha, beta) of the cache model."""

_FEATURE_BITS = 12
_COARSER_BITS = 8
"""Affinities are looked up in steps of 2^-16."""
_VALUE_BITS = 30
_MOST_KEYS = 1 << 53 - _VALUE_BITS
_ENTRIES_AT_ONCE = 1 << 21


def check_grid(model: CacheModel, pairs: Pairs, mechanism: GridMechanism) -> None:
    """
    Raises:
        ValueError: a mechanism for another number of pairs, a cache with too many keys or with sums of a release.
    """
    if len(pairs) != mechanism.dimension:
        raise ValueError(f"the mechanism is for {mechanism.dimension} pairs, these are {len(pairs)}")
    if model.number_of_keys > _MOST_KEYS or model.sums is not None:
        raise ValueError("a grid is over alpha and beta of a cache of keys alone")


def release_grid(
    model: CacheModel,
    records: FeatureSet,
    pairs: Pairs,
    mechanism: GridMechanism,
    randomness: RandomStreams | None = None,
) -> NDArray[np.int64]:
    """(G,) noised counts in steps: (epsilon, delta)-DP by add or remove one record, at the cost that ``accounting`` gives.

    Reserve that in the ledger first. Counts far beyond the declared number of records are clamped before the noise; that
    moves no two of them apart. ``randomness`` is for tests.

    Raises:
        ValueError: a label beyond the classes, or as ``check_grid``.
    """
    check_grid(model, pairs, mechanism)
    counts = right_answers(model, records, pairs).sum(axis=0, dtype=np.int64) * mechanism.step
    bound = count_bound(mechanism.step, mechanism.expected_records)
    drawn = np.zeros(len(pairs), np.int32)
    stream = (randomness or RandomStreams.from_system()).noise
    DiscreteGaussian(mechanism.noise_scale).add_to(drawn, stream)
    released: NDArray[np.int64] = np.minimum(counts, bound) + drawn
    return released


def right_answers(model: CacheModel, records: FeatureSet, pairs: Pairs) -> NDArray[np.bool_]:
    """(n, G): whether the cache model with each pair classifies each record rightly. Private as the records are.

    Raises:
        ValueError: a label beyond the classes.
    """
    labels = records.labels.cpu().numpy()
    if len(records) and not 0 <= int(labels.min()) <= int(labels.max()) < model.number_of_classes:
        raise ValueError("a record's label is beyond the classes of the plan")
    cache = _IntegerCache.of(model, pairs)
    right = np.zeros((len(records), len(pairs)), np.bool_)
    at_once = max(1, _ENTRIES_AT_ONCE // max(model.number_of_keys, model.feature_dim))
    for start in range(0, len(records), at_once):
        block = slice(start, start + at_once)
        rows = integer_features(records.features[block], _FEATURE_BITS)
        there = rows.any(axis=1)
        for index, answers in enumerate(cache.answers(rows)):
            right[block, index] = there & (answers == labels[block])
    return right


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _IntegerCache:
    """The public side of the scores."""

    keys: Tensor
    """(NK, C) whole numbers, float64."""
    text: Tensor
    """(N, C) likewise."""
    key_labels: Tensor
    scale: float
    """Of a zero-shot product."""
    pairs: Pairs
    tables: dict[float, NDArray[np.int64]]
    """By beta: exp(-beta (1 - affinity)) in steps of 2^-30, of every affinity."""

    @classmethod
    def of(cls, model: CacheModel, pairs: Pairs) -> _IntegerCache:
        return cls(
            torch.from_numpy(integer_features(model.cache_keys, _FEATURE_BITS)).double(),
            torch.from_numpy(integer_features(model.text_classifier, _FEATURE_BITS)).double(),
            model.key_labels.cpu(),
            model.logit_scale / 4**_FEATURE_BITS,
            pairs,
            {beta: _table(beta) for beta in dict(_by_beta(pairs))},
        )

    def answers(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """For each pair the class (b,) of every row (b, C) of whole numbers."""
        whole = torch.from_numpy(rows).double()
        affinities = torch.mm(whole, self.keys.T).numpy().astype(np.int64)
        places = (affinities >> _COARSER_BITS) + (4**_FEATURE_BITS >> _COARSER_BITS)
        zero_shot = torch.mm(whole, self.text.T).numpy() * self.scale
        found: dict[int, NDArray[np.int64]] = {}
        for beta, alphas in _by_beta(self.pairs):
            by_class = torch.zeros(zero_shot.shape, dtype=torch.int64)
            by_class.index_add_(1, self.key_labels, torch.from_numpy(self.tables[beta][places]))
            sums = by_class.numpy().astype(np.float64)
            for index, alpha in alphas:
                weighed = sums * (alpha / 2.0**_VALUE_BITS)
                found[index] = np.argmax(zero_shot + weighed, axis=1)
        return [found[index] for index in range(len(self.pairs))]


def _by_beta(pairs: Pairs) -> list[tuple[float, list[tuple[int, float]]]]:
    """Each beta with the places and alphas of its pairs."""
    grouped: dict[float, list[tuple[int, float]]] = {}
    for index, (alpha, beta) in enumerate(pairs):
        grouped.setdefault(beta, []).append((index, alpha))
    return list(grouped.items())


@lru_cache(maxsize=16)
def _table(beta: float) -> NDArray[np.int64]:
    """By ``math.exp``, one at a time: a vector routine may round the same number otherwise at another place."""
    most = 4**_FEATURE_BITS >> _COARSER_BITS
    values = (math.exp(-beta * (1.0 - place / most)) for place in range(-most, most + 1))
    table = np.fromiter((round(value * 2.0**_VALUE_BITS) for value in values), np.int64, 2 * most + 1)
    table.setflags(write=False)
    return table

"""One release for a closed-form head: class sums and Gram matrix of the features, each with a share of exact noise.

A record's feature is scaled to norm 1 and rounded to whole steps of 2^-feature_bits, so that its integer vector ``v``
has norm at most s = 2^feature_bits, checked in whole numbers. It adds

    s * v                to the sum of its class          norm s ||v||                        <= s^2 = unit
    v_i v_j, i <= j      to the upper triangle            norm sqrt(sum of (v_i v_j)^2, i <= j) <= ||v||^2 <= unit

so both change by at most ``unit`` in L2, exactly, and both count in steps of 1 / unit. To each entry a silo adds its
share of discrete Gaussian noise of standard deviation ``noise_scale``. The sums of all silos then go
through the secure sum under the names of ``statistics_layout``; what is computed from them is post-processing, and free.

Zero records release noise only. A record whose feature is not finite or has no length counts as absent.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
from cachefl_secure.privacy.mechanism import StatisticsMechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.statistics_layout import CLASS_SUMS, FEATURE_BITS, GRAM, entries, records_bound

_RECORDS_AT_ONCE = 1 << 12
_LEAST_NORM = 1e-6

IntegerVector = NDArray[np.int64]


def release_statistics(
    records: FeatureSet,
    classes: int,
    mechanism: StatisticsMechanism,
    randomness: RandomStreams | None = None,
) -> dict[str, IntegerVector]:
    """Both vectors by name, noised: (epsilon, delta)-DP by add or remove one record, at the cost that ``accounting`` gives.

    Reserve that in the ledger first. Entries beyond what the declared records can add up to are clamped before the noise;
    that moves no two sums apart. ``randomness`` is for tests.

    Raises:
        ValueError: a label beyond the classes, or a mechanism of another dimension.
    """
    dim = records.features.shape[1]
    lengths = entries(classes, dim)
    if sum(lengths.values()) != mechanism.dimension:
        raise ValueError(f"the mechanism is for {mechanism.dimension} entries, these are {lengths}")
    if len(records) and not 0 <= int(records.labels.min()) <= int(records.labels.max()) < classes:
        raise ValueError("a record's label is beyond the classes of the plan")
    noise, stream = DiscreteGaussian(mechanism.noise_scale), (randomness or RandomStreams.from_system()).noise
    bound = records_bound(mechanism.unit, mechanism.expected_records)
    released = {}
    for name, exact in integer_sums(records, classes, mechanism.feature_bits).items():
        drawn = np.zeros(exact.size, np.int32)
        noise.add_to(drawn, stream)
        released[name] = np.clip(exact, -bound, bound) + drawn
    return released


def integer_features(features: Tensor, feature_bits: int) -> NDArray[np.int64]:
    """(b, C): each row scaled to norm s = 2^feature_bits and rounded to whole numbers of norm at most s, exactly.

    To nearest; where that makes a row too long, the entries that grew most are cut off instead, as few as it takes.
    """
    # Row by row in memory: only then is a norm added up in one order, however many other rows there are.
    given = features.detach().cpu().double().contiguous().numpy()
    lengths = np.linalg.norm(given, axis=1, keepdims=True)
    usable = np.isfinite(lengths) & (lengths > _LEAST_NORM)
    scaled = np.where(usable, given, 0.0) / np.where(usable, lengths, 1.0) * 2.0**feature_bits
    whole = np.rint(scaled).astype(np.int64)
    longest = 1 << 2 * feature_bits
    long = np.flatnonzero(_squares(whole) > longest)
    whole[long] = _cut(scaled[long], whole[long], longest)
    whole[_squares(whole) > longest] = (
        0  # not reached: rows that are cut off everywhere are not longer than given
    )
    return whole


def _cut(scaled: NDArray[np.float64], whole: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """Rows with the largest roundings away from 0 undone, until their squared norm is at most ``longest``."""
    size = np.abs(whole)
    grown = size - np.abs(scaled)
    order = np.argsort(-grown, axis=1, kind="stable")
    saved = np.where(grown > 0, 2 * size - 1, 0)
    left = _squares(whole)[:, None] - np.cumsum(np.take_along_axis(saved, order, axis=1), axis=1)
    undone = 1 + np.argmax(left <= longest, axis=1)  # how many
    rank = np.argsort(order, axis=1, kind="stable")
    cut: NDArray[np.int64] = whole - np.sign(whole) * ((rank < undone[:, None]) & (grown > 0))
    return cut


def _squares(whole: NDArray[np.int64]) -> NDArray[np.int64]:
    squares: NDArray[np.int64] = (whole * whole).sum(axis=1)
    return squares


def integer_sums(
    records: FeatureSet, classes: int, feature_bits: int = FEATURE_BITS
) -> dict[str, IntegerVector]:
    """Without noise: private as the records are. Each block's float64 product is exact: its entries stay below 2^53."""
    dim = records.features.shape[1]
    class_sums, gram = np.zeros((classes, dim), np.int64), np.zeros((dim, dim), np.int64)
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        block = slice(start, start + _RECORDS_AT_ONCE)
        rows = integer_features(records.features[block], feature_bits)
        np.add.at(class_sums, records.labels[block].cpu().numpy(), rows)
        floats = torch.from_numpy(rows).double()
        gram += torch.mm(floats.T, floats).numpy().astype(np.int64)
    return {
        CLASS_SUMS: (class_sums << feature_bits).reshape(-1),
        GRAM: gram[np.triu_indices(dim)],
    }

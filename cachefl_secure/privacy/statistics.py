"""One release for a closed-form head: class sums and Gram matrix of the features, each with a share of exact noise.

A record's feature is scaled to norm 1 and rounded to whole steps of 2^-feature_bits, so that its integer vector ``v``
has norm at most s = 2^feature_bits, checked in whole numbers. It adds

    s * v                to the sum of its class          norm s ||v||                        <= s^2 = unit
    v_i v_j, i <= j      to the upper triangle            norm sqrt(sum of (v_i v_j)^2, i <= j) <= ||v||^2 <= unit

so both change by at most ``unit`` in L2, exactly, and both count in steps of 1 / unit. To each entry a silo adds its
share of discrete Gaussian noise of standard deviation ``noise_scale``. The sums of all silos then go
through the secure sum under the names below; what is computed from them is post-processing and costs nothing.

Zero records release noise only. A record whose feature is not finite or has no length counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
from cachefl_secure.privacy.mechanism import StatisticsMechanism
from cachefl_secure.privacy.noise import RandomStreams

CLASS_SUMS, GRAM = "class-sums", "gram"
"""Names of the two vectors in the secure sum."""

_RECORDS_AT_ONCE = 1 << 12
_LEAST_NORM = 1e-6

IntegerVector = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Statistics:
    """Sums over all records of all silos, with the sum of their noise."""

    class_sums: NDArray[np.float64]
    """(N, C): of the features of each class."""
    gram: NDArray[np.float64]
    """(C, C), symmetric: sum of f f^T. With noise it need not be positive definite: regularise before solving."""


def entries(classes: int, dim: int) -> dict[str, int]:
    """Length of each vector; together they are the mechanism's ``dimension``."""
    return {CLASS_SUMS: classes * dim, GRAM: dim * (dim + 1) // 2}


def entry_bounds(mechanism: StatisticsMechanism, expected_records: int) -> dict[str, int]:
    """Largest absolute value of one silo's entry, by name: what the declared records can add up to, and the noise.

    Before the noise, entries are clamped to the former; that moves no two sums apart.
    """
    most = _sum_bound(mechanism, expected_records) + DiscreteGaussian(mechanism.noise_scale).limit
    return {CLASS_SUMS: most, GRAM: most}


def release_statistics(
    records: FeatureSet,
    classes: int,
    mechanism: StatisticsMechanism,
    expected_records: int,
    randomness: RandomStreams | None = None,
) -> dict[str, IntegerVector]:
    """Both vectors by name, noised: (epsilon, delta)-DP by add or remove one record, at the cost that ``accounting`` gives.

    Reserve that in the ledger first. ``expected_records`` is public, from the plan. ``randomness`` is for tests.

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
    bound = _sum_bound(mechanism, expected_records)
    released = {}
    for name, exact in _integer_sums(records, classes, mechanism).items():
        drawn = np.zeros(exact.size, np.int32)
        noise.add_to(drawn, stream)
        released[name] = np.clip(exact, -bound, bound) + drawn
    return released


def statistics_of(
    sums: Mapping[str, IntegerVector], classes: int, dim: int, mechanism: StatisticsMechanism
) -> Statistics:
    """What sums of releases say, in units of features. Post-processing.

    Raises:
        ValueError: vectors of another size.
    """
    if {name: values.size for name, values in sums.items()} != entries(classes, dim):
        raise ValueError("sums of other classes or features")
    gram = np.zeros((dim, dim))
    rows, columns = np.triu_indices(dim)
    gram[rows, columns] = gram[columns, rows] = sums[GRAM] / mechanism.unit
    return Statistics(sums[CLASS_SUMS].reshape(classes, dim) / mechanism.unit, gram)


def integer_features(features: Tensor, feature_bits: int) -> NDArray[np.int64]:
    """(b, C): each row scaled to norm s = 2^feature_bits and rounded to whole numbers of norm at most s, exactly.

    To nearest; where that makes a row too long, the entries that grew most are cut off instead, as few as it takes.
    """
    given = features.detach().cpu().double().numpy()
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


def _integer_sums(
    records: FeatureSet, classes: int, mechanism: StatisticsMechanism
) -> dict[str, IntegerVector]:
    """Without noise. Each block's float64 product is exact: its entries stay below 2^53."""
    dim = records.features.shape[1]
    class_sums, gram = np.zeros((classes, dim), np.int64), np.zeros((dim, dim), np.int64)
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        block = slice(start, start + _RECORDS_AT_ONCE)
        rows = integer_features(records.features[block], mechanism.feature_bits)
        np.add.at(class_sums, records.labels[block].cpu().numpy(), rows)
        floats = torch.from_numpy(rows).double()
        gram += torch.mm(floats.T, floats).numpy().astype(np.int64)
    return {
        CLASS_SUMS: (class_sums << mechanism.feature_bits).reshape(-1),
        GRAM: gram[np.triu_indices(dim)],
    }


def _sum_bound(mechanism: StatisticsMechanism, expected_records: int) -> int:
    if expected_records < 1:
        raise ValueError("expected_records must be at least 1")
    return expected_records * mechanism.unit

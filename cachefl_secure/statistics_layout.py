"""The two integer vectors of a release of statistics: names, lengths, unit and bounds. Public numbers only.

Why a record changes either by at most ``UNIT`` stands in ``privacy.statistics``.
"""

from __future__ import annotations

import math

CLASS_SUMS, GRAM = "class-sums", "gram"
"""Names of the two in the secure sum."""

FEATURE_BITS = 9
"""A feature of norm 1 becomes integers of norm at most 2^9. More would leave less room for noise below 2^26."""
UNIT = 1 << 2 * FEATURE_BITS

_NOISE_SCALES = 18
"""No draw of noise is longer: its sampler's limit is 17 scales and a cell (``privacy.discrete_gaussian``)."""


def entries(classes: int, dim: int) -> dict[str, int]:
    """Length of each vector: N C, and the upper triangle of (C, C). Together they are the mechanism's ``dimension``."""
    return {CLASS_SUMS: classes * dim, GRAM: dim * (dim + 1) // 2}


def records_bound(unit: int, expected_records: int) -> int:
    """What the declared records can add up to in an entry of one silo; it is clamped to that before noise."""
    if expected_records < 1:
        raise ValueError("expected_records must be at least 1")
    return expected_records * unit


def noise_bound(noise_scale: float) -> int:
    """What no draw of noise passes."""
    return math.ceil(_NOISE_SCALES * noise_scale)


def entry_bound(unit: int, expected_records: int, noise_multiplier: float) -> int:
    """Largest absolute value of one silo's noised entry."""
    return records_bound(unit, expected_records) + noise_bound(noise_multiplier * unit)

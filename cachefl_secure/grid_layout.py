"""The integer vector of a grid over alpha and beta: name, unit, step and bounds. Public numbers only.

Why a record changes it by at most ``UNIT`` stands in ``privacy.grid``.
"""

from __future__ import annotations

import math

from cachefl_secure.statistics_layout import noise_bound, records_bound

GRID = "grid"
"""Name of the vector in the secure sum."""

MOST_PAIRS = 256
"""More would drown in their noise, which grows with the root of their number."""
UNIT_BITS = 16
UNIT = 1 << UNIT_BITS
"""Largest norm of one record's integers. Noise stays below 2^26, so it may have 1,024 units."""


def step_of(pairs: int, unit: int = UNIT) -> int:
    """What one right answer adds to its pair: right for all of them, a record still has norm at most ``unit``.

    Raises:
        ValueError: no pairs, or more than whole numbers are left for.
    """
    step = math.isqrt(unit * unit // pairs) if pairs > 0 else 0
    if step < 1 or pairs * step * step > unit * unit:
        raise ValueError(f"{pairs} pairs do not fit into a unit of {unit}")
    return step


_TIMES_EXPECTED = 16
"""A silo may have so many times the declared records before its counts stop telling pairs apart. Costs 4 bits a count."""


def count_bound(step: int, expected_records: int) -> int:
    """Most that an entry of one silo may be before noise; it is clamped to that."""
    return records_bound(step, _TIMES_EXPECTED * expected_records)


def entry_bound(pairs: int, expected_records: int, noise_multiplier: float) -> int:
    """Largest absolute value of one silo's noised entry."""
    return count_bound(step_of(pairs), expected_records) + noise_bound(noise_multiplier * UNIT)


def best_of(counts: list[int]) -> int:
    """Index of the pair that wins: the largest noised count, of equals the first. The same whole number at every party."""
    return max(range(len(counts)), key=lambda index: (counts[index], -index))

"""The integers in which private gradients are summed and noised, so that privacy rests on no floating point.

A record's clipped gradient is ``a f^T`` (``cache.model``). Both factors are rounded to integers, ``f`` to
``feature_bits`` bits and ``a`` to ``gradient_bits``, and kept so short that the product of their norms is at
most ``unit`` = 2^(feature_bits + gradient_bits): one more record changes an integer sum by a vector of norm
at most ``unit``, exactly. Rounding the *sum* instead would let it change by up to sqrt(d) more.

One integer step is worth ``clip_norm / unit``. Everything here follows from public numbers: every party
derives it from the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAST_BITS = 7
_MOST_BITS = 17  # 128 products of this many bits still add up exactly in float32
_SPARE_BITS = 2  # rounding n entries adds at most n / 4 to a squared norm: 1 / 64 of it
_FEATURE_BITS = 9  # more spare bits would be wasted on features

_BOUND_NOISE_STDS = 128


@dataclass(frozen=True, slots=True)
class Lattice:
    """How finely the two factors of a gradient are rounded."""

    feature_bits: int
    gradient_bits: int

    def __post_init__(self) -> None:
        if min(self.feature_bits, self.gradient_bits) < 1 or self.bits > _MOST_BITS:
            raise ValueError(f"a lattice of {self.feature_bits} + {self.gradient_bits} bits")

    @classmethod
    def of(cls, trained_rows: int, feature_dim: int) -> Lattice:
        """As fine as rounding a factor of so many entries asks for: it then costs less than 1 % of the norm."""
        feature_bits = min(_bits_for(feature_dim), _FEATURE_BITS)
        return cls(feature_bits, min(_bits_for(trained_rows), _MOST_BITS - feature_bits))

    @property
    def bits(self) -> int:
        return self.feature_bits + self.gradient_bits

    @property
    def unit(self) -> int:
        """Largest norm of one record's integer gradient: the sensitivity of every sum of them."""
        return 1 << self.bits


def sum_bound(lattice: Lattice, sampling_rate: float, expected_records: int, noise_multiplier: float) -> int:
    """B: sums of integer gradients are clamped entry by entry to [-B, B] before noise.

    What the declared number of records can add up to, or 128 standard deviations of a silo's noise if that
    is less. Clamping moves no two sums apart, so it costs no privacy; how often it happens is not released.
    """
    declared = math.ceil(sampling_rate * expected_records) * lattice.unit
    return min(declared, math.ceil(_BOUND_NOISE_STDS * noise_multiplier * lattice.unit))


def _bits_for(entries: int) -> int:
    return max(_LEAST_BITS, math.ceil(math.log2(entries) / 2) + _SPARE_BITS)

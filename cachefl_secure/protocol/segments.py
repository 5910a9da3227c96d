"""Integer vectors that are summed in a round, each under its name and in its own width.

The update is the first; others travel in the same masked input and come out in the same sum: record counts,
numbers of right answers, class sums, Gram matrices. What a silo would otherwise have to say in the clear
belongs here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachefl_secure.protocol import packing

COUNT_BITS = 64
MAX_VECTOR_BITS = 32


def noise_tail(noise_std: float, entries: int) -> int:
    """What none of ``entries`` draws of noise passes, except with probability 2^-40: ceil(c s), c = sqrt(2 ln(2 d 2^40)).

    For a tail that is no heavier than the Gaussian's, which the discrete Gaussian's is not (Canonne et al. 2020).
    """
    return math.ceil(math.sqrt(2.0 * math.log(2.0 * entries * 2.0**40)) * noise_std)


def bits_for(entry_bound: int, silos: int, *, noise_std: float = 0.0, entries: int = 1) -> int:
    """b: bits in which the sum of ``silos`` entries of at most ``entry_bound`` does not wrap.

    Without noise it cannot: b = ceil(log2(2 n B + 1)). With integer noise whose sum over all silos has
    standard deviation ``noise_std``, any of the ``entries`` wraps with probability at most 2^-40:
    b = ceil(log2(2 (n B + noise_tail) + 1)).
    """
    if entry_bound < 1 or silos < 1 or entries < 1 or not 0.0 <= noise_std < math.inf:
        raise ValueError("a sum has silos, entries and a bound, and finite noise")
    return (2 * (silos * entry_bound + noise_tail(noise_std, entries))).bit_length()


@dataclass(frozen=True, slots=True)
class Segment:
    """One named integer vector of a round, beside the update."""

    name: str
    entries: int
    bits: int
    """8 to 32, or 64 for counts: then the sum is exact modulo 2^64."""
    bound: int
    """Largest absolute value of one silo's entry."""

    def __post_init__(self) -> None:
        if not self.name or self.entries < 1 or self.bound < 1:
            raise ValueError("a segment has a name, entries and a bound")
        if not (1 <= self.bits <= MAX_VECTOR_BITS or self.bits == COUNT_BITS):
            raise ValueError(f"segment {self.name}: {self.bits} bits")

    @classmethod
    def of(cls, name: str, entries: int, bound: int, silos: int) -> Segment:
        """As narrow as a cohort of ``silos`` allows.

        Raises:
            ValueError: not even 64 bits hold the sum.
        """
        bits = bits_for(bound, silos)
        return cls(name, entries, bits if bits <= MAX_VECTOR_BITS else COUNT_BITS, bound)

    def check(self, silos: int) -> None:
        """
        Raises:
            ValueError: the sum over so many silos could wrap.
        """
        if bits_for(self.bound, silos) > self.bits:
            raise ValueError(f"segment {self.name}: {self.bits} bits do not hold the sum of {silos} silos")

    @property
    def word(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Little-endian word that sums are made in."""
        return np.dtype("<u8" if self.bits > MAX_VECTOR_BITS else "<u2" if self.bits <= 16 else "<u4")

    @property
    def sum_bytes(self) -> int:
        """Length of a sum, in whole words."""
        return self.entries * self.word.itemsize

    @property
    def packed_bytes(self) -> int:
        """Length on the wire."""
        if self.bits == COUNT_BITS:
            return self.sum_bytes
        return packing.packed_bytes(self.entries, self.bits)

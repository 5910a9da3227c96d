"""One type per visibility: EncodedUpdate -> MaskedUpdate -> MaskedSum -> AggregateSum.

Passing one where another is due is a type error. All four hold ring words and uint64 counters of the
same layout; constructors take ownership of the arrays and make them read-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.unsignedinteger[Any]]
Counters = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _RingVector:
    words: Words
    """Shape (d,), uint16 or uint32 as ``RoundParameters.word`` says."""
    counters: Counters
    """Shape (counters,), exact modulo 2^64."""

    def __post_init__(self) -> None:
        self.words.setflags(write=False)
        self.counters.setflags(write=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<{self.words.size} words>, <{self.counters.size} counters>)"


class EncodedUpdate(_RingVector):
    """One silo's update as integers, in the clear. Never leaves the silo."""

    __slots__ = ()


class MaskedUpdate(_RingVector):
    """Uniform on the ring to anyone who lacks one of its masks. The only vector that is sent."""

    __slots__ = ()


class MaskedSum(_RingVector):
    """Sum of the survivors' masked updates. Masks between survivors are gone, the others still stand."""

    __slots__ = ()


class AggregateSum(_RingVector):
    """Sum of the survivors' encoded updates. Everybody may read it."""

    __slots__ = ()

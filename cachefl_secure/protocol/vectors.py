"""One type per visibility: EncodedUpdate -> MaskedUpdate -> MaskedSum -> AggregateSum.

Passing one where another is due is a type error. All four hold the same d ring words, uint64 counters
and further integer vectors; constructors take ownership of the arrays and make them read-only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.names import Digest, digest_of, digest_of_joined
from cachefl_secure.protocol.parameters import RoundParameters

Words = NDArray[np.unsignedinteger[Any]]
Counters = NDArray[np.uint64]

_AGGREGATE = "cachefl-secure/aggregate/1"

ReadEntries = Callable[[Words], int]
"""Overwrites the array with the next entries of an update; returns how many of them were clamped and not yet counted."""


class Unmasked(Protocol):
    """What a silo masks: an update as integers in the clear, made before (``EncodedUpdate``) or on the way (``Encoding``)."""

    @property
    def counters(self) -> Counters:
        """Without the entries that ``ReadEntries`` counts."""
        ...

    @property
    def others(self) -> tuple[Words, ...]: ...

    def check(self, parameters: RoundParameters) -> None:
        """
        Raises:
            ValueError: not the vectors of these parameters.
        """
        ...

    def entries_from(self, start: int) -> ReadEntries:
        """Readers of different slices may be used by different threads."""
        ...


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _RingVector:
    words: Words
    """Shape (d,), uint16 or uint32 as ``RoundParameters.word`` says."""
    counters: Counters
    """Shape (counters,), exact modulo 2^64."""
    others: tuple[Words, ...] = ()
    """One array for each of ``RoundParameters.segments``, in its order and word."""

    def __post_init__(self) -> None:
        for array in (self.words, self.counters, *self.others):
            array.setflags(write=False)

    def __repr__(self) -> str:
        others = "".join(f", <{each.size} words>" for each in self.others)
        return f"{type(self).__name__}(<{self.words.size} words>, <{self.counters.size} counters>{others})"

    def check(self, parameters: RoundParameters) -> None:
        """
        Raises:
            ValueError: not the vectors of these parameters.
        """
        due = [(parameters.word, parameters.dimension), (np.dtype("<u8"), parameters.counters)]
        due += [(segment.word, segment.entries) for segment in parameters.segments]
        arrays = (self.words, self.counters, *self.others)
        if [(array.dtype, array.size) for array in arrays] != due:
            raise ValueError("vectors of other parameters")

    def to_bytes(self) -> bytes:
        """Ring words, counters, then the other vectors, little endian: what is stored, delivered and hashed."""
        return b"".join(self._pieces())

    def _pieces(self) -> list[memoryview]:
        """What ``to_bytes`` joins."""
        return [array.view(np.uint8).data for array in (self.words, self.counters, *self.others)]

    @classmethod
    def from_bytes(cls, content: bytes, parameters: RoundParameters) -> Self:
        """
        Raises:
            ValueError: not as long as this round's sums are.
        """
        if len(content) != parameters.sum_bytes:
            raise ValueError(f"{len(content)} bytes")
        layout = [(parameters.word, parameters.dimension), (np.dtype("<u8"), parameters.counters)]
        layout += [(segment.word, segment.entries) for segment in parameters.segments]
        arrays, at = [], 0
        for word, entries in layout:
            arrays.append(np.frombuffer(content, word, entries, at))
            at += entries * word.itemsize
        return cls(arrays[0], arrays[1], tuple(arrays[2:]))


class EncodedUpdate(_RingVector):
    """One silo's update as integers, in the clear. Never leaves the silo."""

    __slots__ = ()

    def entries_from(self, start: int) -> ReadEntries:
        left = self.words[start:]

        def read(out: Words) -> int:
            nonlocal left
            np.copyto(out, left[: out.size])
            left = left[out.size :]
            return 0  # the counters have them

        return read


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class MaskedUpdate:
    """Uniform on the ring to anyone who lacks one of its masks. The only vector that is sent."""

    packed: NDArray[np.uint8]
    """The update's words of ``RoundParameters.vector_bits`` bits, as ``packing`` lays them out, then the segments'."""
    counters: Counters

    def __post_init__(self) -> None:
        self.packed.setflags(write=False)
        self.counters.setflags(write=False)

    def __repr__(self) -> str:
        return f"MaskedUpdate(<{self.packed.size} bytes>, <{self.counters.size} counters>)"


class MaskedSum(_RingVector):
    """Sum of the survivors' masked updates. Masks between survivors are gone, the others still stand."""

    __slots__ = ()


class AggregateSum(_RingVector):
    """Sum of the survivors' encoded updates. Everybody may read it.

    Words are the sum modulo 2^vector_bits, lifted to the integer next to 0 and written in two's complement.
    """

    __slots__ = ()

    @property
    def digest(self) -> Digest:
        """``aggregate_digest`` of ``to_bytes``, which it does not make."""
        return digest_of_joined(_AGGREGATE, self._pieces())


def aggregate_digest(content: bytes) -> Digest:
    """The name of a sum, over its ``to_bytes``, in transcripts and records alike."""
    return digest_of(_AGGREGATE, content)

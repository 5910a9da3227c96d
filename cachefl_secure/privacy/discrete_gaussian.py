"""Exact samples of the discrete Gaussian on the integers: P(k) proportional to exp(-k^2 / (2 scale^2)).

Canonne, Kamath and Steinke (2020). Not a rounded normal, and no floating-point number decides a draw:

1. The integers from -17 to 17 scales are cut into cells of w = 2^m, some 64 to 128 cells to a scale. A cell is drawn with
   probability proportional to its largest weight, by 32 random bits against a table of the cells' distribution. Where
   these bits and the table's agree, so that they do not decide, 512 further bits and the table to 544 bits do.
2. An integer of the cell is drawn by m random bits.
3. It is kept with probability exp(-(k^2 - k0^2) / (2 scale^2)), k0 the heaviest integer of its cell; else the draw
   begins anew. 32 - m random bits against the least such probability in the cell nearly always decide; then 53
   further bits against a double; and where those are too close for a double's error, exact decimals.

What is not exact, and how much: the cut at 17 scales leaves a mass below 2^-200, and the table's integers are
right to 10^-150 of the heaviest weight.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.privacy.noise import RandomStream

_TAIL = 17
_CELLS_A_SCALE = 64  # to twice as many: one draw in 80 to 160 needs a closer look
_CHUNK = 1 << 15
_CELL_BITS = 32
_MORE_BITS = 512  # beyond these, where they do not decide
_TABLE_BITS = _CELL_BITS + _MORE_BITS
_GUIDE_BITS = 16
_DIGITS = 160  # decimal digits of weights: 17 scales out they are 10^-63
_DOUBLE_ERROR = 1e-13  # far above what two operations and an exponential of a small number can be wrong by

LARGEST_SCALE = float(1 << 26)
"""17 of these fit into 31 bits, and a cell's integers into 20."""
SMALLEST_SCALE = 0.5


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Table:
    """Everything that follows from a scale."""

    offset_bits: int
    heaviest: NDArray[np.int64]
    """k0 of each cell."""
    start: NDArray[np.int32]
    """Smallest integer of each cell."""
    exact: tuple[int, ...]
    """Distribution function at the end of each cell, times 2^544, rounded down; the last is 2^544."""
    top: NDArray[np.uint32]
    """The first 32 bits of these."""
    guide: NDArray[np.int64]
    """By the first 16 random bits: the first cell that can be meant."""
    guided_start: NDArray[np.int32]
    """By the same: its smallest integer."""
    guided_surely: NDArray[np.uint32]
    """By the same: least probability of being kept there, times 2^(32 - m), rounded down; 0 if another cell can be meant."""


class DiscreteGaussian:
    """The distribution for one ``scale``, which is taken as the exact number that the float is."""

    __slots__ = ("_scale", "_table")

    def __init__(self, scale: float) -> None:
        """
        Raises:
            ValueError: ``scale`` is not between 0.5 and 2^26.
        """
        if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
            raise ValueError(f"a scale of {scale!r} steps")
        self._scale, self._table = scale, _table(scale)

    def __repr__(self) -> str:
        return f"DiscreteGaussian({self._scale!r})"

    @property
    def largest(self) -> int:
        """No draw is further from 0."""
        return -int(self._table.start[0])

    def sample(self, count: int, stream: RandomStream) -> NDArray[np.int32]:
        """``count`` independent draws: a function of the stream and of how many are asked for."""
        drawn = np.zeros(count, np.int32)
        self.add_to(drawn, stream)
        return drawn

    def add_to(self, values: NDArray[np.int32], stream: RandomStream) -> None:
        """Adds as many draws in place; ``values`` must have room for ``largest`` more."""
        for start in range(0, values.size, _CHUNK):
            part = values[start : start + _CHUNK]
            np.add(part, self._some(part.size, stream), out=part)

    def _some(self, count: int, stream: RandomStream) -> NDArray[np.int32]:
        drawn, again = self._try(count, stream)
        while again.size:
            drawn[again], refused = self._try(again.size, stream)
            again = again[refused]
        return drawn

    def _try(self, count: int, stream: RandomStream) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(integers, positions of those that are not kept), from a word each and what unclear ones need."""
        table, words = self._table, stream.words(count)
        bucket = (words >> np.uint64(64 - _GUIDE_BITS)).view(np.int64)
        rest = words.astype(np.uint32)  # the other half of the word
        integers = table.guided_start.take(bucket)
        integers += (rest & np.uint32((1 << table.offset_bits) - 1)).view(np.int32)
        rest >>= np.uint32(table.offset_bits)
        unclear = np.flatnonzero(rest >= table.guided_surely.take(bucket))
        cells = self._cells(words[unclear], stream)
        of_its_guide = table.guided_start.take(bucket[unclear])
        integers[unclear] += table.start.take(cells) - of_its_guide
        kept = self._kept(rest[unclear], integers[unclear].astype(np.int64), cells, stream)
        return integers, unclear[~kept]

    def _cells(self, words: NDArray[np.uint64], stream: RandomStream) -> NDArray[np.int64]:
        """Step 1: the first cell whose distribution function is above the random number that a word begins."""
        table, bits = self._table, (words >> np.uint64(64 - _CELL_BITS)).astype(np.uint32)
        cell = table.guide.take((words >> np.uint64(64 - _GUIDE_BITS)).view(np.int64))
        behind = np.flatnonzero(table.top.take(cell) < bits)
        cell[behind] += 1  # where it nearly always is
        behind = behind[table.top.take(cell[behind]) < bits[behind]]
        cell[behind] = np.searchsorted(table.top, bits[behind], side="left")
        for position in np.flatnonzero(table.top.take(cell) == bits):
            more = stream.words(_MORE_BITS // 64).tobytes()
            number = (int(bits[position]) << _MORE_BITS) | int.from_bytes(more, "little")
            at = int(cell[position])
            while number >= table.exact[at]:
                at += 1
            cell[position] = at
        return cell

    def _kept(
        self,
        chance: NDArray[np.uint32],
        integers: NDArray[np.int64],
        cells: NDArray[np.int64],
        stream: RandomStream,
    ) -> NDArray[np.bool_]:
        """Step 3 with 53 bits more than ``chance``."""
        table, bits = self._table, 32 - self._table.offset_bits
        more = stream.words(chance.size) >> np.uint64(11)
        # The random number lies between this and this + 2^-(bits + 53), up to a double's rounding.
        number = (chance + more * 2.0**-53) * 2.0**-bits
        heaviest = table.heaviest.take(cells)
        # Exact in 64 bits: the product of a sum and a difference of integers below 2^32.
        above = (integers - heaviest) * (integers + heaviest)
        keep = np.exp(above / (-2.0 * self._scale * self._scale))
        kept: NDArray[np.bool_] = number < keep
        for position in np.flatnonzero(np.abs(number - keep) <= _DOUBLE_ERROR):
            drawn = (int(chance[position]) << 53) | int(more[position])
            kept[position] = _exactly_kept(drawn, bits + 53, int(above[position]), self._scale, stream)
        return kept


def _exactly_kept(drawn: int, bits: int, above: int, scale: float, stream: RandomStream) -> bool:
    """Whether the random number that begins with ``drawn``, of so many bits, is below exp(-above / (2 scale^2))."""
    with decimal.localcontext(prec=_DIGITS):
        keep = (decimal.Decimal(-above) / (2 * decimal.Decimal(scale) ** 2)).exp()
    while True:
        with decimal.localcontext(prec=_DIGITS + bits):
            low = decimal.Decimal(drawn) / (1 << bits)
            if low + decimal.Decimal(2) ** -bits <= keep:
                return True
            if low >= keep:
                return False
        if bits > 400:  # 10^-120: closer than the decimals are computed
            return False
        drawn, bits = (drawn << 64) | int(stream.words(1)[0]), bits + 64


@lru_cache(4)
def _table(scale: float) -> _Table:
    offset_bits = max(0, math.ceil(math.log2(scale / (2 * _CELLS_A_SCALE))))
    width = 1 << offset_bits
    cells = -(-math.ceil(_TAIL * scale) // width)  # on either side of 0
    start = np.arange(-cells, cells, dtype=np.int64) * width
    heaviest = np.where(start < 0, start + width - 1, start)
    weights = [*reversed(_weights(scale, width, 1, cells)), *_weights(scale, width, 0, cells)]
    exact, total, so_far = [], sum(weights), 0
    for weight in weights:
        so_far += weight
        exact.append((so_far << _TABLE_BITS) // total)
    top = np.array([min(each >> _MORE_BITS, (1 << _CELL_BITS) - 1) for each in exact], np.uint32)
    last = (1 << (_CELL_BITS - _GUIDE_BITS)) - 1
    edges = np.arange(1 << _GUIDE_BITS, dtype=np.uint32) << np.uint32(_CELL_BITS - _GUIDE_BITS)
    guide = np.searchsorted(top, edges, side="left")
    only = top[guide] > edges + np.uint32(
        last
    )  # no other cell begins with these 16 bits, and none is in doubt
    far = np.where(start < 0, start, start + width - 1)
    least = np.exp((far - heaviest) * (far + heaviest) / (-2.0 * scale * scale)) - _DOUBLE_ERROR
    surely = np.floor(np.maximum(least, 0.0) * 2.0 ** (32 - offset_bits)).astype(np.uint32)
    return _Table(
        offset_bits=offset_bits,
        heaviest=heaviest,
        start=start.astype(np.int32),
        exact=tuple(exact),
        top=top,
        guide=guide.astype(np.int64),
        guided_start=start.astype(np.int32)[guide],
        guided_surely=np.where(only, surely[guide], 0).astype(np.uint32),
    )


def _weights(scale: float, width: int, first: int, cells: int) -> list[int]:
    """exp(-k^2 / (2 scale^2)) at k = first + j width, j = 0 .. cells - 1, times 10^150, rounded down."""
    with decimal.localcontext(prec=_DIGITS):
        double_variance = 2 * decimal.Decimal(scale) ** 2
        weight = (decimal.Decimal(-first * first) / double_variance).exp()
        # From one to the next the exponent falls by w (2 k + w): a factor that itself falls by a constant one.
        factor = (decimal.Decimal(-width * (2 * first + width)) / double_variance).exp()
        constant = (decimal.Decimal(-2 * width * width) / double_variance).exp()
        weights = []
        for _ in range(cells):
            weights.append(int(weight.scaleb(_DIGITS - 10)))
            weight *= factor
            factor *= constant
    return weights

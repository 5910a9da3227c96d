"""The discrete Gaussian N_Z(0, scale^2) on the integers: k with probability proportional to exp(-k^2 / (2 scale^2)).

Canonne, Kamath and Steinke 2020 define it and sample it exactly with big integers, below 10^5 draws a second.
Here the same distribution comes from tables, by rejection:

The integers are cut into cells of ``width`` = 2^b neighbours. 65,536 slots of equal probability are dealt out so
that cell j holds ``sure[j]`` slots and ``tested[j]`` more (a multiple of 2^-64 of all tested slots together), with

    sure[j]  <=  density * rho(k)  <=  sure[j] + tested[j]        for all k in cell j,  rho(k) = exp(-k^2 / (2 scale^2)).

A draw takes a slot and an offset inside the cell. A sure slot is accepted (98 % of all draws: one look-up); a tested
one is accepted if  sure[j] + U * tested[j] < density * rho(k)  for a uniform real U, and else everything is drawn anew.
So a try gives k with probability  density * rho(k) / (65,536 * width),  the same factor for every k in the support.

The comparison is done in float64 where its margin is beyond any rounding error, and otherwise (once in 2^35 draws)
with rational bounds on rho and as many more bits of U as it takes. The scale is the rational that the float is.

What is exact and what is bounded. Given uniform words, the result is *exactly* N_Z(0, scale^2) conditioned on
-limit <= k < limit, where limit >= 17 scale; the constants above are floats, but any constants that obey the two
inequalities give this distribution, and they are rounded so that they do. That differs from N_Z(0, scale^2) by the
mass cut off, less than ``TAIL_MASS`` = 2^-207 a draw, in total variation. The words are AES-256-CTR, so against
anybody who cannot break AES. Not constant in time: how often a draw is repeated, and which cache line is read, depend on
what is drawn; a process on the same machine is not among the adversaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.privacy.noise import RandomStream

SMALLEST_SCALE, LARGEST_SCALE = 0.5, 2.0**26
TAIL_SCALES = 17
TAIL_MASS = 2.0**-207
"""Bound on P(|k| >= 17 s) under N_Z(0, s^2) for every s >= 1/2.

Beyond 17 s, rho falls by exp(-17 / s) a step at least, and all of rho sums to s sqrt(2 pi) at least, so the mass is below
2 exp(-144.5) (1 + s / 17) / (s sqrt(2 pi)) <= 1.65 exp(-144.5) < 2^-207."""

_SLOTS = 1 << 16
_WIDTH_BITS = 16  # at most: a slot and an offset share 32 bits
_CELLS_A_SCALE = 64  # to 128 where the width allows; more would round more slots down, fewer be less level
_CHUNK = 1 << 15
_GUIDE_BITS = 12
BLOCK = 1 << 17
"""Draws between two visits to the tested slots."""

_MARGIN = 2.0**-36
"""Float comparisons closer than this share of a cell's height are not trusted.

Relative errors: z = k / s, z^2 and -z^2 / 2 have 3 * 2^-53 together, times at most 181; so exp has 2^-43 and its
own few units in the last place; U has 2^-53 of the tested height. Together below 2^-42."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Cells:
    """The slots and cells of one scale. Arrays are read-only: they are shared by all samplers of that scale."""

    width: int
    density: float
    """Slots at k = 0, as if slots were not whole."""
    slot_value: NDArray[np.int32]
    """Of every slot, the first integer of its cell; 0 for a slot that is tested."""
    value: NDArray[np.int64]
    """Of every cell, its first integer. The first cell's is -limit."""
    sure: NDArray[np.int64]
    tested_from: NDArray[np.uint64]
    """Of every cell, the first 64-bit word that falls on its tested part."""
    tested_to: NDArray[np.uint64]
    """The last one."""
    guide: NDArray[np.intp]
    """Of every value of a word's upper bits, the cell of the first such word."""
    tested: NDArray[np.float64]
    """Of every cell, ``share[j] * tested_slots / 2^64``, rounded."""
    share: tuple[int, ...]
    """Of 2^64 words, how many fall on the tested part of each cell."""

    @property
    def sure_slots(self) -> int:
        return int(self.sure.sum())

    def tested_cell(self, words: NDArray[np.uint64]) -> NDArray[np.intp]:
        """The cell on whose tested part each word falls: ``searchsorted``, but for most words by a table."""
        cell: NDArray[np.intp] = self.guide[words >> np.uint64(64 - _GUIDE_BITS)]
        for _ in range(2):
            cell += words > self.tested_to[cell]
        left = np.flatnonzero(words > self.tested_to[cell])
        if left.size:
            cell[left] = np.searchsorted(self.tested_from, words[left], side="right") - 1
        return cell


@lru_cache(maxsize=8)
def _cells_of(scale: float) -> _Cells:
    """About 1 ms; 10 ms for scales near 2^26."""
    width = 1 << min(max(math.frexp(scale / _CELLS_A_SCALE)[1] - 1, 0), _WIDTH_BITS)
    half = math.ceil(TAIL_SCALES * scale / width)
    value = np.arange(-half, half, dtype=np.int64) * width
    nearest = np.where(value < 0, value + (width - 1), value)
    farthest = np.where(value < 0, value, value + (width - 1))
    most, least = _rho(nearest, scale), _rho(farthest, scale)
    # The sum of all ``most`` is 2^-20 short of all slots: room to round every cell upwards.
    density = _SLOTS * (1.0 - 2.0**-20) / float(most.sum())
    sure = np.floor(density * least * (1.0 - 2.0**-40)).astype(np.int64)
    tested_slots = _SLOTS - int(sure.sum())
    wanted = (density * most * (1.0 + 2.0**-40) - sure) * (2.0**64 / tested_slots)
    share = [int(words) + 1 for words in wanted.tolist()]
    # What is left of all words makes the last cell higher, hence worse; a test refuses what it must.
    share[-1] += 2**64 - sum(share)
    ends = np.cumsum(np.array(share[:-1], dtype=np.uint64), dtype=np.uint64)
    tested_from = np.concatenate([np.zeros(1, dtype=np.uint64), ends])
    firsts = np.arange(1 << _GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - _GUIDE_BITS)
    cells = _Cells(
        width=width,
        density=density,
        slot_value=np.zeros(_SLOTS, dtype=np.int32),
        value=value,
        sure=sure,
        tested_from=tested_from,
        tested_to=np.append(ends - np.uint64(1), np.uint64(2**64 - 1)),
        guide=np.searchsorted(tested_from, firsts, side="right") - 1,
        tested=np.array(share, dtype=np.float64) * (tested_slots / 2.0**64),
        share=tuple(share),
    )
    cells.slot_value[: cells.sure_slots] = np.repeat(value, sure)
    for array in (
        cells.slot_value,
        cells.value,
        cells.sure,
        cells.tested_from,
        cells.tested_to,
        cells.guide,
        cells.tested,
    ):
        array.setflags(write=False)
    return cells


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Scratch:
    """Memory of one call, written again by every chunk: new memory for each costs a quarter of the time."""

    words: NDArray[np.uint64]
    slots: NDArray[np.intp]
    drawn: NDArray[np.int32]

    @classmethod
    def of(cls, draws: int) -> _Scratch:
        chunk = min(draws, _CHUNK)
        return cls(
            np.empty((chunk + 1) // 2, dtype="<u8"),
            np.empty(chunk, dtype=np.intp),
            np.empty(draws, dtype=np.int32),
        )


class DiscreteGaussian:
    """Draws of N_Z(0, scale^2), exact but for a tail of less than 2^-207 (see the module).

    Results are a function of the stream's words alone. A request uses the stream as its parts would if it is cut
    at multiples of ``BLOCK`` draws; cut elsewhere, the same stream gives other values of the same distribution.
    Objects have no state and may be shared by threads; a stream may not.
    """

    __slots__ = ("_cells", "scale")

    def __init__(self, scale: float) -> None:
        """``scale`` is s in exp(-k^2 / (2 s^2)), from 1/2 to 2^26: the standard deviation for s >= 1 (to 2e-7).

        Raises ValueError outside that range. The tables of the last eight scales are kept.
        """
        if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
            raise ValueError(f"scale must be in [{SMALLEST_SCALE:g}, 2^26]")
        self.scale = float(scale)
        self._cells = _cells_of(self.scale)

    def __repr__(self) -> str:
        return f"DiscreteGaussian({self.scale!r})"

    @property
    def limit(self) -> int:
        """No draw is larger than this in absolute value: 17 scale, rounded up to a whole cell."""
        return -int(self._cells.value[0])

    def sample(self, count: int, stream: RandomStream) -> NDArray[np.int64]:
        """``count`` independent draws."""
        drawn = np.empty(count, dtype=np.int64)
        self.fill(drawn, stream)
        return drawn

    def fill(self, out: NDArray[Any], stream: RandomStream) -> None:
        """Independent draws into every place of ``out``, one-dimensional and of signed integers that hold ``limit``."""
        _check_vector(out)
        if np.iinfo(out.dtype).min > -self.limit:
            raise ValueError(f"{out.dtype} does not hold draws up to {self.limit}")
        for start, drawn in self._blocks(out.size, stream):
            out[start : start + drawn.size] = drawn

    def add_to(self, values: NDArray[Any], stream: RandomStream) -> None:
        """Adds what ``fill`` would have drawn to a one-dimensional integer array, modulo 2^(its bits)."""
        _check_vector(values)
        for start, drawn in self._blocks(values.size, stream):
            values[start : start + drawn.size] += drawn.astype(values.dtype, copy=False)

    def _blocks(self, count: int, stream: RandomStream) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """(position, draws); each block's draws are overwritten by the next ones."""
        scratch = _Scratch.of(min(count, BLOCK))
        for start in range(0, count, BLOCK):
            yield start, self._draw(min(BLOCK, count - start), stream, scratch)

    def _draw(self, count: int, stream: RandomStream, scratch: _Scratch) -> NDArray[np.int32]:
        """``count`` draws, at most as many as the scratch is for, in its memory."""
        cells, drawn = self._cells, scratch.drawn[:count]
        first_tested, tested = np.uint32(cells.sure_slots << 16), []
        for start in range(0, count, _CHUNK):
            part = drawn[start : start + _CHUNK]
            words, slots = scratch.words[: (part.size + 1) // 2], scratch.slots[: part.size]
            stream.fill(words)
            halves = words.view("<u4")[: part.size]
            tested.append(np.flatnonzero(halves >= first_tested) + start)
            slots[:] = words.view("<u2")[1 : 2 * part.size : 2]  # upper 16 bits of every half
            np.take(
                cells.slot_value, slots, out=part, mode="clip"
            )  # no slot is out of range: "raise" is slower
            halves &= np.uint32(cells.width - 1)
            part += halves.view("<i4")
        positions = np.concatenate(tested)
        if positions.size:
            drawn[positions], accepted = self._test(drawn[positions], stream)
            refused = positions[~accepted]
            if refused.size:
                drawn[refused] = self._draw(refused.size, stream, _Scratch.of(refused.size))
        return drawn

    def _test(
        self, offsets: NDArray[np.int32], stream: RandomStream
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For draws on tested slots: a value at each offset, and whether it is accepted."""
        cells, words = self._cells, stream.words(2 * offsets.size)
        uniform = words[offsets.size :]
        chosen = cells.tested_cell(words[: offsets.size])
        values = cells.value[chosen] + offsets
        sure, tested = cells.sure[chosen], cells.tested[chosen]
        height = (uniform >> np.uint64(11)) * 2.0**-53 * tested + sure
        ahead = cells.density * _rho(values, self.scale) - height
        accepted = ahead > 0
        for i in np.flatnonzero(np.abs(ahead) <= _MARGIN * (sure + tested)):
            accepted[i] = self._is_below(int(chosen[i]), int(values[i]), int(uniform[i]), stream)
        return values, accepted

    def _is_below(self, cell: int, value: int, uniform: int, stream: RandomStream) -> bool:
        """Whether sure + U tested < density rho(value), where the first 64 bits of U are ``uniform``."""
        cells, bits = self._cells, 64
        sure, density = int(cells.sure[cell]), Fraction(cells.density)
        tested = Fraction(cells.share[cell] * (_SLOTS - cells.sure_slots), 2**64)
        while True:
            least, most = rho_bounds(value, self.scale, digits=bits // 3 + 20)
            if sure + Fraction(uniform + 1, 2**bits) * tested <= density * least:
                return True
            if sure + Fraction(uniform, 2**bits) * tested >= density * most:
                return False
            uniform, bits = uniform << 64 | int(stream.words(1)[0]), bits + 64


def rho_bounds(value: int, scale: float, digits: int) -> tuple[Fraction, Fraction]:
    """Rationals around exp(-value^2 / (2 scale^2)), apart by 2 * 10^(3 - digits) of it; for exponents up to 181.

    Division and ``Decimal.exp`` are rounded correctly to ``digits`` digits (half a unit of 10^(1 - digits) each,
    relatively), so the exponent is wrong by 91 units at most and the result by 92.
    """
    exponent = Fraction(value) ** 2 / (2 * Fraction(scale) ** 2)
    context = Context(prec=digits)
    rounded = context.divide(Decimal(-exponent.numerator), Decimal(exponent.denominator)).exp(context)
    error = Fraction(1, 10 ** (digits - 3))
    return Fraction(rounded) * (1 - error), Fraction(rounded) * (1 + error)


def _rho(values: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
    z = values / scale
    rho: NDArray[np.float64] = np.exp(-0.5 * (z * z))
    return rho


def _check_vector(values: NDArray[Any]) -> None:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError("noise goes into a one-dimensional array of integers")

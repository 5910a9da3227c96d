"""Sums of clipped gradients in exact integers (see ``lattice``): what a private step releases, before noise.

Each record's gradient ``a f^T`` becomes ``u v^T`` with integer vectors, ||u||^2 ||v||^2 <= unit^2 checked in
whole numbers. So adding a record adds exactly one such product to the sum, of norm at most ``unit``, whatever
else is in the batch: integers below 2^24 add up exactly in float32, in any order, on any device.

``v`` is rounded to nearest. ``u`` is rounded at random, up or down, so that sums have no bias; a rounded ``u`` that
is too long is shortened. Which way it was rounded is drawn per record, so a record's product does not depend on
the other records either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachefl_secure.cache.lanes import whole_lanes
from cachefl_secure.errors import LocalProtocolError
from cachefl_secure.lattice import Lattice
from cachefl_secure.privacy.noise import RandomStream

_EXACT = 1 << 24  # float32 holds every integer up to here
_BLOCK_ENTRIES = (
    1 << 17
)  # of a product, or coins, that are in memory at once: they stay in the processor's cache
_GPU_BLOCK_ENTRIES = 1 << 24  # 64 MiB: a GPU wants much to do at a time
_MOST_RECORDS = 256
_SHORTER = 0.99
# 0.99^64 is a half: no row is left by then unless numbers are broken, and such a row counts as absent.
_TRIES = 64
_NORM_FLOOR = 1e-6  # as in Opacus' DPOptimizer: no division by zero


def records_at_once(lattice: Lattice) -> int:
    """As many records as may be multiplied in one go: their sum stays exact. A constant, so that shapes are fixed."""
    return min(_MOST_RECORDS, _EXACT // lattice.unit)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class IntegerFactors:
    """``u`` (b, rows) and ``v`` (b, C), whole numbers in float32: record i has the integer gradient u_i v_i^T."""

    u: Tensor
    v: Tensor

    def norms_squared(self) -> Tensor:
        """(b,) float64, exact: of the products."""
        return _squares(self.u) * _squares(self.v)


def integer_factors(
    a: Tensor, f: Tensor, clip_norm: float, lattice: Lattice, coins: Callable[[int], NDArray[np.uint16]]
) -> IntegerFactors:
    """Gradients ``a f^T``, clipped to ``clip_norm``, in steps of clip_norm / unit.

    ``a`` (b, rows) and ``f`` (b, C) float32, finite. ``a`` is taken over: ``u`` is made in its memory.
    ``coins`` gives as many uniform 16-bit numbers as asked for; b * rows are taken, whatever the values are.
    """
    v, factors, longest = scaling(a, f, clip_norm, lattice)
    rows = _rows_at_once(a)
    for start in range(0, len(a), rows):
        block = slice(start, start + rows)
        drawn = torch.from_numpy(coins(a[block].numel())).view(a[block].shape)
        coin = drawn.to(a.device).float().mul_(2.0**-16)
        a[block] = _rounded(a[block], factors[block].unsqueeze(1), coin, longest[block])
    return IntegerFactors(a, v)


def scaling(a: Tensor, f: Tensor, clip_norm: float, lattice: Lattice) -> tuple[Tensor, Tensor, Tensor]:
    """Before coins are thrown: ``v`` (b, C), by how much ``a`` becomes ``u`` (b,), and how long u may be, squared (b,).

    Each row a function of one record, on a device that passes ``device_trial.check_rows_alike``.
    """
    lengths = _norms(f)
    v = torch.round(f * (2.0**lattice.feature_bits / lengths.clamp(min=_NORM_FLOOR)).unsqueeze(1))
    # Never beyond what float32 can add up, which only a feature of no length would allow.
    longest = (lattice.unit**2 / _squares(v).clamp(min=1.0)).clamp(max=_EXACT - 1.0)
    norms = _norms(a) * lengths
    factors = (
        (clip_norm / (norms + _NORM_FLOOR)).clamp(max=1.0)
        * lengths
        * (2.0**lattice.gradient_bits / clip_norm)
    )
    shrunk = _shrink(norms / clip_norm, lattice, longest, a.shape[1])
    return v, torch.nan_to_num(factors, 0.0, 0.0, 0.0) * shrunk, longest


def _shrink(norms: Tensor, lattice: Lattice, longest: Tensor, entries: int) -> Tensor:
    """By what u must be shorter, so that rounding, which adds up to entries / 4 to its square, seldom makes it too long.

    One standard deviation is left free as well, or nearly.
    """
    squares = (norms.double().clamp(max=1.0) * 2.0**lattice.gradient_bits).square()
    room = (longest - entries / 4 - longest.sqrt()).clamp(min=0.0)
    return (room / squares.clamp(min=1.0)).sqrt().clamp(max=1.0).float()


def _rounded(a: Tensor, factors: Tensor, coin: Tensor, longest: Tensor) -> Tensor:
    """Rows of ``a`` times their factors, at random to whole numbers, none longer than allowed (squared)."""
    # A product and then a sum, each rounded: where one instruction does both, it may do so at some places only.
    rounded = torch.mul(a, factors).add_(coin).floor_()
    for attempt in range(_TRIES):
        long = (~(_quick_squares(rounded) <= longest)).nonzero().flatten()  # NaN is never short enough
        if not len(long):
            return rounded
        shorter = factors[long] * _SHORTER ** (attempt + 1)
        rounded[long] = torch.mul(a[long], shorter).add_(coin[long]).floor_()
    rounded[~(_quick_squares(rounded) <= longest)] = 0.0
    return rounded


def _rows_at_once(matrix: Tensor) -> int:
    return max(1, (_BLOCK_ENTRIES if matrix.device.type == "cpu" else _GPU_BLOCK_ENTRIES) // matrix.shape[1])


def _norms(rows: Tensor) -> Tensor:
    """(b,): in whole lanes, since a GPU adds up a row that begins at another address in another order."""
    norms: Tensor = whole_lanes(rows).norm(dim=1)
    return norms


def _quick_squares(rows: Tensor) -> Tensor:
    """(b,) float32: squared norms of whole numbers, exactly where below 2^24; what is at least 2^24 stays so.

    Whatever the order of the additions: sums of whole numbers below 2^24 are exact, and rounding keeps order.
    """
    squares: Tensor = torch.linalg.vecdot(rows, rows)
    return squares


def _squares(rows: Tensor) -> Tensor:
    """(b,) float64: squared norms of whole numbers, exactly: below 2^50, the root of a sum is close enough to find it."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.square_().round_()


class IntegerSum:
    """The sum of integer gradients of one step, rows x C, chunk by chunk."""

    __slots__ = ("_begun", "_total")

    def __init__(self, shape: tuple[int, int], lattice: Lattice, records: int, device: torch.device) -> None:
        """For at most ``records`` records: their number decides about memory, and about nothing else."""
        fits = records * lattice.unit < 1 << 31
        self._total = torch.empty(shape, dtype=torch.int32 if fits else torch.int64, device=device)
        self._begun = False

    def add(self, factors: IntegerFactors) -> None:
        """At most ``records_at_once`` records: every partial sum is then a whole number that float32 holds."""
        keys, dim = self._total.shape
        rows = min(keys, _rows_at_once(self._total))
        product = torch.empty(rows, dim, device=self._total.device)
        for start in range(0, keys, rows):
            part = self._total[start : start + rows]
            block = product[: len(part)]
            torch.mm(factors.u[:, start : start + rows].T, factors.v, out=block)
            if self._begun:
                part.add_(block.to(part.dtype))
            else:
                part.copy_(block)
        self._begun = True

    def clamped(self, bound: int) -> Tensor:
        """int32 on the processor, every entry in [-bound, bound]. Ends this sum: the next ``add`` begins another.

        Both may stand in the memory of what is returned.
        """
        if not self._begun:
            raise LocalProtocolError("a sum of nothing, not even of an empty chunk")
        self._begun = False
        return self._total.clamp_(-bound, bound).to("cpu", torch.int32)


def coins_from(stream: RandomStream) -> Callable[[int], NDArray[np.uint16]]:
    """Uniform 16-bit numbers, four to a word of the stream."""

    def coins(count: int) -> NDArray[np.uint16]:
        return stream.words(-(-count // 4)).view(np.uint16)[:count]

    return coins

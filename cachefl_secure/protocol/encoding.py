"""Fixed-point encoding of an update, and decoding of a sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.crypto.expand import Keystream, StreamSeed
from cachefl_secure.errors import LocalProtocolError, PeerError
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum, Counters, EncodedUpdate, ReadEntries, Words
from cachefl_secure.updates import IntegerUpdate, NoisedSums, PrivateUpdate, ScaledUpdate

_CHUNK = 1 << 16  # entries
_FRACTION_BITS = 16


class RoundingSeed(StreamSeed):
    """Decides which entries of one update are rounded up. One update, one seed, one encoding."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class DecodedSum:
    """The sum of the survivors' updates. Divide by their number for the mean."""

    values: NDArray[np.float64]
    """Shape (d,), read-only."""
    saturated: int
    """Entries that some silo clamped: each is missing an unknown part of its value."""
    integers: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """The sums of the further vectors, by name, exact."""

    def __repr__(self) -> str:
        return f"DecodedSum(<{self.values.size} values>, saturated={self.saturated})"


class Encoding:
    """An update that is clamped, scaled and stochastically rounded to ring words as they are read.

    The integers never stand in memory together. Counter 0 will be the number of clamped entries.

    Guarantees: every integer lies within ``entry_bound`` of 0, so a sum over the cohort does not wrap; each is the
    floor or the ceiling of its scaled value, and in expectation next to it: nearer to 0, if at all, by less than 2^-16.
    Which one it is depends on the seed, on nothing else: not on how the entries are cut among readers.
    """

    def __init__(
        self,
        update: PrivateUpdate | ScaledUpdate,
        parameters: RoundParameters,
        rounding: RoundingSeed,
        vectors: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        """``vectors`` are those of ``RoundParameters.segments``, by name.

        Raises:
            LocalProtocolError: the update has another dimension, or the vectors are as ``with_integers`` says.
        """
        self._numbers, self._step = _numbers(update)
        if self._numbers.size != parameters.dimension:
            raise LocalProtocolError(f"update of {self._numbers.size} entries, {parameters.dimension} due")
        self._parameters, self._rounding = parameters, rounding
        self.counters: Counters = np.zeros(parameters.counters, "<u8")
        self.others = _checked(vectors or {}, parameters)

    def __repr__(self) -> str:
        return f"Encoding(<{self._numbers.size} values>)"

    def check(self, parameters: RoundParameters) -> None:
        if parameters != self._parameters:
            raise ValueError("encoded for other parameters")

    def entries_from(self, start: int) -> ReadEntries:
        coins = Keystream(self._rounding, 2 * start)
        return _Rounding(self._numbers[start:], self._step, self._parameters, coins)


def _numbers(update: PrivateUpdate | ScaledUpdate) -> tuple[NDArray[Any], float | None]:
    """(d,) numbers, and what one of them is worth; None: they are the values."""
    return (update.integers, update.step) if isinstance(update, ScaledUpdate) else (update.values, None)


class IntegerEncoding:
    """An update that is whole grid steps already, noise included: nothing is rounded, clamped or counted.

    A count of clamped entries would be a count over records that no noise covers, so there is none: the clamp
    is inside the mechanism, before the noise. Counter 0 stays 0.
    """

    def __init__(
        self,
        update: IntegerUpdate,
        parameters: RoundParameters,
        vectors: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        """As ``Encoding``.

        Raises:
            LocalProtocolError: as ``Encoding``.
        """
        if update.integers.size != parameters.dimension:
            raise LocalProtocolError(f"update of {update.integers.size} entries, {parameters.dimension} due")
        self._words: Words = update.integers.view("<u4")
        self._parameters = parameters
        self.counters: Counters = np.zeros(parameters.counters, "<u8")
        self.others = _checked(vectors or {}, parameters)

    def __repr__(self) -> str:
        return f"IntegerEncoding(<{self._words.size} integers>)"

    def check(self, parameters: RoundParameters) -> None:
        if parameters != self._parameters:
            raise ValueError("encoded for other parameters")

    def entries_from(self, start: int) -> ReadEntries:
        left = self._words[start:]

        def read(out: Words) -> int:
            nonlocal left
            np.copyto(out, left[: out.size], casting="unsafe")  # modulo the word
            left = left[out.size :]
            return 0

        return read


def sums_encoding(sums: NoisedSums, parameters: RoundParameters) -> IntegerEncoding:
    """Sums for the vectors that the parameters name, one after another; the update beside them is all zeros.

    Raises:
        LocalProtocolError: other lengths, or an entry beyond its bound.
    """
    lengths = [segment.entries for segment in parameters.segments]
    if sums.integers.size != sum(lengths):
        raise LocalProtocolError(f"{sums.integers.size} integers, {sum(lengths)} due")
    pieces = np.split(sums.integers, np.cumsum(lengths)[:-1]) if lengths else []
    vectors = {each.name: piece for each, piece in zip(parameters.segments, pieces, strict=True)}
    return IntegerEncoding(IntegerUpdate(np.zeros(parameters.dimension, np.int32)), parameters, vectors)


def encode(update: PrivateUpdate, parameters: RoundParameters, rounding: RoundingSeed) -> EncodedUpdate:
    """All of an ``Encoding`` of an update without further vectors, at once.

    Raises:
        LocalProtocolError: the update has another dimension.
    """
    if update.values.size != parameters.dimension:
        raise LocalProtocolError(f"update of {update.values.size} entries, {parameters.dimension} due")
    words = np.empty(parameters.dimension, parameters.word)
    counters = np.zeros(parameters.counters, "<u8")
    read = _Rounding(update.values, None, parameters, Keystream(rounding))
    counters[0] = read(words)
    return EncodedUpdate(words, counters)


def with_integers(
    update: EncodedUpdate, vectors: Mapping[str, NDArray[np.int64]], parameters: RoundParameters
) -> EncodedUpdate:
    """The update together with the further vectors of ``RoundParameters.segments``, by name. Integers stay exact.

    Raises:
        LocalProtocolError: a vector is missing or not asked for, has another size, or passes its bound: what
            does not fit is never clamped in silence.
    """
    others = _checked(vectors, parameters)
    return EncodedUpdate(update.words.copy(), update.counters.copy(), others)


def _checked(vectors: Mapping[str, NDArray[np.int64]], parameters: RoundParameters) -> tuple[Words, ...]:
    if sorted(vectors) != sorted(segment.name for segment in parameters.segments):
        raise LocalProtocolError("other vectors than the parameters name")
    others: list[Words] = []
    for segment in parameters.segments:
        values = np.asarray(vectors[segment.name], np.int64).ravel()
        outside = (values > segment.bound) | (values < -segment.bound)
        if values.size != segment.entries or bool(outside.any()):
            raise LocalProtocolError(f"{segment.name}: not {segment.entries} entries within its bound")
        others.append(values.astype(segment.word))  # negative ones modulo the word
    return tuple(others)


def integers_of(total: AggregateSum, name: str, parameters: RoundParameters) -> NDArray[np.int64]:
    """The sum of the vectors of this name, exact.

    Raises:
        PeerError: larger than any cohort that keeps to the bound can make it.
        KeyError: no vector of this name.
    """
    for segment, words in zip(parameters.segments, total.others, strict=True):
        if segment.name == name:
            signed = words.view(words.dtype.str.replace("u", "i")).astype(np.int64)
            bound = parameters.cohort_size * segment.bound
            if signed.max() > bound or signed.min() < -bound:
                raise PeerError("a silo of the cohort", f"the sum of {name} lies outside the agreed bound")
            return signed
    raise KeyError(name)


def decode_sum(total: AggregateSum, parameters: RoundParameters) -> DecodedSum:
    """The real values of a sum of encodings.

    Raises:
        PeerError: the sum is larger than any cohort that keeps to the encoding can make it. The masks
            hide which silo did not.
    """
    signed = total.words.view(parameters.word.str.replace("u", "i"))  # centred lift: [-2^(w-1), 2^(w-1))
    bound = parameters.sum_bound(parameters.cohort_size)
    saturated = int(total.counters[0])
    most_saturated = parameters.cohort_size * parameters.dimension if parameters.counts_clamped else 0
    if signed.max() > bound or signed.min() < -bound or saturated > most_saturated:
        raise PeerError("a silo of the cohort", "the sum lies outside the agreed bound")
    values = signed * np.float64(parameters.grid_step)
    values.setflags(write=False)
    integers = {each.name: integers_of(total, each.name, parameters) for each in parameters.segments}
    return DecodedSum(values, saturated, integers)


class _Rounding:
    """Fixed point with 16 fraction bits, plus a coin of 16 bits, without those bits.

    That is the floor, or the floor + 1 if the coin takes the fraction over a whole step: one coin in 2^16
    for each 2^-16 of the fraction. Bits of the value below that are cut off, towards 0.
    """

    def __init__(
        self, numbers: NDArray[Any], step: float | None, parameters: RoundParameters, coins: Keystream
    ) -> None:
        self._left, self._step, self._clamp, self._coins = numbers, step, parameters.clamp, coins
        self._scale = 2.0**_FRACTION_BITS / parameters.grid_step
        # 2^15 steps and a coin fill 31 bits; more than 2^31 steps do not occur, so 64 bits always do.
        self._lane = np.dtype("<i4" if parameters.entry_bound <= 1 << (31 - _FRACTION_BITS) else "<i8")
        self._fixed, self._coin = np.empty(0, self._lane), np.empty(0, "<u2")

    def __call__(self, out: Words) -> int:
        """Works in memory for as many entries as the longest call so far asked for, at most 2^16: 6 or 10 bytes each."""
        at_once = min(out.size, _CHUNK)
        if self._fixed.size < at_once:
            self._fixed, self._coin = np.empty(at_once, self._lane), np.empty(at_once, "<u2")
        return sum(self._round(out[start : start + _CHUNK]) for start in range(0, out.size, _CHUNK))

    def _round(self, out: Words) -> int:
        values, self._left = self._left[: out.size], self._left[out.size :]
        if self._step is not None:
            values = values * np.float64(self._step)
        fixed, coin = self._fixed[: out.size], self._coin[: out.size]
        # Two passes in memory that is there anyway, or one that needs none.
        scaled = fixed.view("<f8") if self._lane.itemsize == 8 else None
        clamped = 0
        if values.max() > self._clamp or values.min() < -self._clamp:  # seldom
            within = np.clip(values, -self._clamp, self._clamp, out=scaled)
            clamped = int(np.count_nonzero(within != values))
            values = within
        if scaled is None:
            np.multiply(values, self._scale, out=fixed, casting="unsafe")
        else:
            np.multiply(values, self._scale, out=scaled)
            np.copyto(fixed, scaled, casting="unsafe")
        self._coins.fill(coin.view(np.uint8))
        np.add(fixed, coin, out=fixed)
        np.right_shift(fixed, _FRACTION_BITS, out=fixed)  # arithmetic: the floor, of negative numbers too
        np.copyto(out, fixed, casting="unsafe")  # modulo the word
        return clamped

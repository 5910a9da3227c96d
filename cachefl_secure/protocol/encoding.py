"""Fixed-point encoding of an update, and decoding of a sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.crypto.expand import Keystream
from cachefl_secure.crypto.secret import Secret
from cachefl_secure.errors import LocalProtocolError, PeerError
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate
from cachefl_secure.updates import PrivateUpdate

_CHUNK = 1 << 14


class RoundingSeed(Secret):
    """Decides which entries of one update are rounded up. One update, one seed, one encoding."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class DecodedSum:
    """The sum of the survivors' updates. Divide by their number for the mean."""

    values: NDArray[np.float64]
    """Shape (d,), read-only."""
    saturated: int
    """Entries that some silo clamped: each is missing an unknown part of its value."""

    def __repr__(self) -> str:
        return f"DecodedSum(<{self.values.size} values>, saturated={self.saturated})"


def encode(update: PrivateUpdate, parameters: RoundParameters, rounding: RoundingSeed) -> EncodedUpdate:
    """Clamped, scaled and stochastically rounded to ring words; counter 0 is the number of clamped entries.

    Guarantees: every integer lies within ``entry_bound`` of 0, so a sum over the cohort does not wrap;
    each is the floor or the ceiling of its scaled value and equals that value in expectation, to 2^-32.

    Raises:
        LocalProtocolError: the update has another dimension.
    """
    if update.values.size != parameters.dimension:
        raise LocalProtocolError(f"update of {update.values.size} entries, {parameters.dimension} due")
    words = np.empty(parameters.dimension, parameters.word)
    counters = np.zeros(parameters.counters, "<u8")
    coins, clamped = Keystream(rounding), np.empty(min(_CHUNK, words.size))
    for start in range(0, words.size, _CHUNK):
        values = update.values[start : start + _CHUNK]
        scaled = clamped[: values.size]
        np.clip(values, -parameters.clamp, parameters.clamp, out=scaled)
        counters[0] += np.count_nonzero(scaled != values)
        np.divide(scaled, parameters.grid_step, out=scaled)
        np.copyto(words[start : start + _CHUNK], _round_stochastically(scaled, coins), casting="unsafe")
    return EncodedUpdate(words, counters)


def with_integers(
    update: EncodedUpdate, vectors: Mapping[str, NDArray[np.int64]], parameters: RoundParameters
) -> EncodedUpdate:
    """The update together with the further vectors of ``RoundParameters.segments``, by name. Integers stay exact.

    Raises:
        LocalProtocolError: a vector is missing or not asked for, has another size, or passes its bound: what
            does not fit is never clamped in silence.
    """
    if sorted(vectors) != sorted(segment.name for segment in parameters.segments):
        raise LocalProtocolError("other vectors than the parameters name")
    others = []
    for segment in parameters.segments:
        values = np.asarray(vectors[segment.name], np.int64).ravel()
        outside = (values > segment.bound) | (values < -segment.bound)
        if values.size != segment.entries or bool(outside.any()):
            raise LocalProtocolError(f"{segment.name}: not {segment.entries} entries within its bound")
        others.append(values.astype(segment.word))  # negative ones modulo the word
    return EncodedUpdate(update.words.copy(), update.counters.copy(), tuple(others))


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
    bound = parameters.cohort_size * parameters.entry_bound
    saturated = int(total.counters[0])
    if (
        signed.max() > bound
        or signed.min() < -bound
        or saturated > parameters.cohort_size * parameters.dimension
    ):
        raise PeerError("a silo of the cohort", "the sum lies outside the agreed bound")
    values = signed * np.float64(parameters.grid_step)
    values.setflags(write=False)
    return DecodedSum(values, saturated)


def _round_stochastically(scaled: NDArray[np.float64], coins: Keystream) -> NDArray[np.uint32]:
    """Floor, or floor + 1 if a coin of 32 bits falls below the fraction: unbiased to 2^-32 of a step.

    Negative integers come out modulo 2^32. ``scaled`` lies within the entry bound, so they fit; it is overwritten.
    """
    floor = np.floor(scaled)
    fraction = np.subtract(scaled, floor, out=scaled)  # exact
    coin = np.empty(scaled.size, "<i4")  # signed: floats are made of these, not of unsigned ones, in one step
    coins.fill(coin.view(np.uint8))
    np.multiply(fraction, 2.0**32, out=fraction)
    np.subtract(fraction, 2.0**31, out=fraction)
    rounded = floor.astype(np.int32)
    np.add(rounded, (coin < fraction).view(np.int8), out=rounded)
    return rounded.view(np.uint32)

"""Fixed-point encoding of an update, and decoding of a sum."""

from __future__ import annotations

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
    each is the floor or the ceiling of its scaled value and equals that value in expectation, to 2^-53.

    Raises:
        LocalProtocolError: the update has another dimension.
    """
    if update.values.size != parameters.dimension:
        raise LocalProtocolError(f"update of {update.values.size} entries, {parameters.dimension} due")
    words = np.empty(parameters.dimension, parameters.word)
    counters = np.zeros(parameters.counters, "<u8")
    coins = Keystream(rounding)
    for start in range(0, words.size, _CHUNK):
        values = update.values[start : start + _CHUNK]
        counters[0] += np.count_nonzero(np.abs(values) > parameters.clamp)
        scaled = np.clip(values, -parameters.clamp, parameters.clamp) / parameters.grid_step
        words[start : start + _CHUNK] = _round_stochastically(scaled, coins).astype(parameters.word)
    return EncodedUpdate(words, counters)


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


def _round_stochastically(scaled: NDArray[np.float64], coins: Keystream) -> NDArray[np.int64]:
    """Floor, or floor + 1 with the probability of the fraction: a 53-bit uniform below it.

    The comparison is exact where the fraction is a multiple of 2^-53, as it is for every |x| >= 1.
    """
    floor = np.floor(scaled)
    uniform = np.empty(scaled.size, "<u8")
    coins.fill(uniform.view(np.uint8))
    up = (uniform >> np.uint64(11)) * np.float64(2.0**-53) < scaled - floor
    return floor.astype(np.int64) + up

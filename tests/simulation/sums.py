"""What a masked vector and a sum must be, vector by vector: update, counters and every segment.

Streams come from AES in counter mode by another way than production's, and their places are counted here: one
stream a seed, over all vectors of a message one after another, no place twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from cachefl_secure.protocol import packing
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.segments import COUNT_BITS
from cachefl_secure.protocol.vectors import EncodedUpdate, MaskedUpdate

_Words = NDArray[np.unsignedinteger[Any]]


def names_and_bits(parameters: RoundParameters) -> list[tuple[str, int]]:
    """Of all vectors of a message, in order."""
    segments = ((segment.name, segment.bits) for segment in parameters.segments)
    return [("update", parameters.vector_bits), ("counters", COUNT_BITS), *segments]


def vectors_of(update: EncodedUpdate) -> list[_Words]:
    """In the same order."""
    return [update.words, update.counters, *update.others]


def wrongly_masked(
    update: EncodedUpdate,
    added: Sequence[bytes],
    subtracted: Sequence[bytes],
    masked: MaskedUpdate,
    parameters: RoundParameters,
) -> str | None:
    """Name of the first vector that is not the clear one under all of these streams, each at its own places."""
    clear = vectors_of(update)
    size, at = sum(each.nbytes for each in clear), 0
    sent = _sent(masked, update, parameters)
    for (name, bits), each in zip(names_and_bits(parameters), clear, strict=True):
        words = each.copy()
        for seeds, put in ((added, np.add), (subtracted, np.subtract)):
            for seed in seeds:
                put(words, np.frombuffer(_stream(seed, size), each.dtype, each.size, at), out=words)
        left = np.array((1 << bits) - 1, each.dtype)  # the ring's bits
        if ((words ^ next(sent)) & left).any():
            return name
        at += each.nbytes
    return None


def _sent(masked: MaskedUpdate, update: EncodedUpdate, parameters: RoundParameters) -> Iterator[_Words]:
    at = parameters.packed_bytes
    yield packing.unpack(masked.packed[:at], parameters.dimension, parameters.vector_bits)
    yield masked.counters
    for segment, clear in zip(parameters.segments, update.others, strict=True):
        content = masked.packed[at : at + segment.packed_bytes]
        at += segment.packed_bytes
        if segment.bits == COUNT_BITS:
            yield np.frombuffer(content.tobytes(), clear.dtype)
        else:
            yield packing.unpack(content, segment.entries, segment.bits)


@lru_cache(1 << 9)
def _stream(seed: bytes, size: int) -> bytes:
    """Key and nonce; block 2 is the first, as in GCM."""
    first = seed[16:] + (2).to_bytes(4, "big")
    return Cipher(AES128(seed[:16]), CTR(first)).encryptor().update(bytes(size))


def wrong_sum(content: bytes, updates: Sequence[EncodedUpdate], parameters: RoundParameters) -> str | None:
    """Name of the first vector in a sum's bytes that is not, as integers, the sum of the updates' vectors."""
    at = 0
    for index, (name, _) in enumerate(names_and_bits(parameters)):
        each = [_signed(vectors_of(update)[index]) for update in updates]
        word = vectors_of(updates[0])[index].dtype
        total = _signed(np.frombuffer(content, word, each[0].size, at))
        if (total != np.sum(each, axis=0)).any():
            return name
        at += each[0].size * word.itemsize
    return None if at == len(content) else "another length"


def _signed(words: _Words) -> NDArray[np.int64]:
    """As the integers next to 0 that the words stand for."""
    return words.view(words.dtype.str.replace("u", "i")).astype(np.int64)

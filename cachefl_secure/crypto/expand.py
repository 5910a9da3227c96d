"""AES-128 in counter mode (SP 800-38A, D): a seed into a keystream, and keystreams onto ring vectors as masks.

A seed is a key and a nonce, both from one derivation, so every key is used, and attacked, under a nonce of its own:
work on one stream is no work on another (decision 0020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from timeit import default_timer
from typing import Any, ClassVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM
from numpy.typing import NDArray

from cachefl_secure.crypto.secret import Secret

CHUNK_BYTES = 256 * 1024  # accumulator and keystream chunk stay in the second-level cache
_ZEROS = np.zeros(CHUNK_BYTES, np.uint8)
_ZEROS.setflags(write=False)

_KEY_BYTES = 16
_NONCE_BYTES = 12
_BLOCK_BYTES = 16
_FIRST_COUNTER = 2  # as in GCM, which keeps 1 for its tag

RingVector = NDArray[np.unsignedinteger[Any]]


class StreamSeed(Secret):
    """Expands to one keystream: an AES-128 key, then the nonce of 96 bits that it is used with. Subclass it per purpose."""

    __slots__ = ()
    length_bytes: ClassVar[int] = _KEY_BYTES + _NONCE_BYTES


class Keystream:
    """The pseudo-random bytes of one seed from byte ``start`` on, each given out once. At most 2^36 - 32 bytes."""

    __slots__ = ("_cipher",)

    def __init__(self, seed: StreamSeed, start: int = 0) -> None:
        key, nonce = seed.reveal()[:_KEY_BYTES], seed.reveal()[_KEY_BYTES:]
        if start == 0 and gcm_is_faster():
            self._cipher = _by_gcm(key, nonce)
            return
        block, within = divmod(start, _BLOCK_BYTES)
        self._cipher = _by_counter_mode(key, nonce, block)
        if within:
            self.fill(np.empty(within, np.uint8))

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Overwrites ``out``, contiguous, with the next ``out.size`` bytes; no allocation."""
        for start in range(0, out.size, CHUNK_BYTES):
            chunk = out[start : start + CHUNK_BYTES]
            self.fill_one(_ZEROS[: chunk.size].data, chunk.data)

    def fill_one(self, zeros: memoryview, out: memoryview) -> None:
        """As ``fill``, for as many bytes as there are ``zeros``."""
        self._cipher.update_into(zeros, out)


def _by_counter_mode(key: bytes, nonce: bytes, block: int = 0) -> CipherContext:
    return Cipher(AES128(key), CTR(nonce + (_FIRST_COUNTER + block).to_bytes(4, "big"))).encryptor()


def _by_gcm(key: bytes, nonce: bytes) -> CipherContext:
    """The same bytes from block 0 on, and from nowhere else: what GCM makes of zeros (SP 800-38D 7.1). Its tag is left."""
    return Cipher(AES128(key), GCM(nonce)).encryptor()


@cache
def gcm_is_faster() -> bool:
    """Which of the two ways to the same bytes is the shorter one here: measured once, on a chunk, in half a millisecond.

    OpenSSL's code for GCM works on whole vectors where the processor has AES for 512 bits, and is then faster than that
    for counter mode in spite of its tag. Elsewhere it was seen to take twice the time (decision 0021).
    """
    out = np.empty(CHUNK_BYTES, np.uint8).data

    def seconds(stream: Callable[[bytes, bytes], CipherContext]) -> float:
        cipher, least = stream(bytes(_KEY_BYTES), bytes(_NONCE_BYTES)), float("inf")
        for _ in range(4):
            started = default_timer()
            cipher.update_into(_ZEROS.data, out)
            least = min(least, default_timer() - started)
        return least

    return seconds(_by_gcm) < seconds(_by_counter_mode)


class MaskStreams:
    """The masks of one vector, added and subtracted as its words come by, from byte ``start`` of the streams on."""

    __slots__ = ("_scratch", "_streams")

    def __init__(self, *, add: Sequence[StreamSeed], subtract: Sequence[StreamSeed], start: int = 0) -> None:
        self._streams = [(Keystream(seed, start), np.add) for seed in add] + [
            (Keystream(seed, start), np.subtract) for seed in subtract
        ]
        self._scratch = np.empty(CHUNK_BYTES, np.uint8)

    def apply(self, words: RingVector) -> None:
        """Adds and subtracts the next words of every stream, in place, modulo 2**(8 * itemsize).

        Streams are little endian and go on where the last call ended. Chunks outside, streams inside:
        memory is read once, however many streams there are.
        """
        chunk_words = CHUNK_BYTES // words.itemsize
        for start in range(0, words.size, chunk_words):
            chunk = words[start : start + chunk_words]
            keystream = self._scratch[: chunk.nbytes]
            mask, zeros, out = keystream.view(words.dtype), _ZEROS[: chunk.nbytes].data, keystream.data
            # Little is done between the calls that let other threads run, or these wait for each other.
            for stream, operation in self._streams:
                stream.fill_one(zeros, out)
                operation(chunk, mask, out=chunk)  # unsigned: wraps, which is the ring


def apply_masks(
    segments: Sequence[RingVector], *, add: Sequence[StreamSeed], subtract: Sequence[StreamSeed]
) -> None:
    """All masks on a whole vector, in place. A stream runs through the segments in order."""
    streams = MaskStreams(add=add, subtract=subtract)
    for segment in segments:
        streams.apply(segment)

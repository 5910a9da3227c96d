"""AES-256-CTR (SP 800-38A): a seed into a keystream, and keystreams onto ring vectors as masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from cachefl_secure.crypto.secret import Secret

CHUNK_BYTES = 256 * 1024  # accumulator and keystream chunk stay in the second-level cache
_ZEROS = np.zeros(CHUNK_BYTES, np.uint8)
_ZEROS.setflags(write=False)

# A seed keys one stream only, so the counter block may be a constant. This one makes the stream equal to
# AES-256-GCM's under a zero nonce, which some machines compute faster.
_FIRST_BLOCK = (2).to_bytes(16, "big")

RingVector = NDArray[np.unsignedinteger[Any]]


class Keystream:
    """The pseudo-random bytes of one seed, from the start, each given out once."""

    __slots__ = ("_cipher",)

    def __init__(self, seed: Secret) -> None:
        self._cipher = counter_mode(seed.reveal(), _FIRST_BLOCK)

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Overwrites ``out``, contiguous, with the next ``out.size`` bytes; no allocation."""
        for start in range(0, out.size, CHUNK_BYTES):
            chunk = out[start : start + CHUNK_BYTES]
            self._cipher.update_into(_ZEROS[: chunk.size].data, chunk.data)


def counter_mode(key: bytes, first_block: bytes) -> CipherContext:
    """AES-256 in counter mode with the whole 16-byte block as counter."""
    return Cipher(AES256(key), CTR(first_block)).encryptor()


def apply_masks(segments: Sequence[RingVector], *, add: Sequence[Secret], subtract: Sequence[Secret]) -> None:
    """Adds and subtracts the expansion of every seed, in place, modulo 2**(8 * itemsize) of each segment.

    A stream runs through the segments in order, read as little-endian words, so its tail masks the last
    segment. Chunks outside, streams inside: memory is read once, however many streams there are.
    """
    streams = [(Keystream(seed), np.add) for seed in add] + [
        (Keystream(seed), np.subtract) for seed in subtract
    ]
    scratch = np.empty(CHUNK_BYTES, np.uint8)
    for segment in segments:
        chunk_words = CHUNK_BYTES // segment.itemsize
        for start in range(0, segment.size, chunk_words):
            chunk = segment[start : start + chunk_words]
            keystream = scratch[: chunk.nbytes]
            words = keystream.view(segment.dtype)
            for stream, operation in streams:
                stream.fill(keystream)
                operation(chunk, words, out=chunk)  # unsigned: wraps, which is the ring

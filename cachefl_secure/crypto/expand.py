"""AES-256 in counter mode (SP 800-38A, D): a seed into a keystream, and keystreams onto ring vectors as masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM
from numpy.typing import NDArray

from cachefl_secure.crypto.secret import Secret

CHUNK_BYTES = 256 * 1024  # accumulator and keystream chunk stay in the second-level cache
_ZEROS = np.zeros(CHUNK_BYTES, np.uint8)
_ZEROS.setflags(write=False)

# A seed keys one stream only, so the nonce may be a constant. Zeros encrypted under GCM are the blocks of counter
# mode from counter 2 on (SP 800-38D 7.1); its tag is left. OpenSSL's code for it is faster than that for counter
# mode, by a fifth where AES and carry-less multiplication work on whole vectors; but only the latter can begin
# anywhere.
_NONCE = bytes(12)
_FIRST_COUNTER = 2
_BLOCK_BYTES = 16

RingVector = NDArray[np.unsignedinteger[Any]]


class Keystream:
    """The pseudo-random bytes of one seed from byte ``start`` on, each given out once. At most 2^36 - 32 bytes."""

    __slots__ = ("_cipher",)

    def __init__(self, seed: Secret, start: int = 0) -> None:
        self._cipher: CipherContext
        if start == 0:
            self._cipher = Cipher(AES256(seed.reveal()), GCM(_NONCE)).encryptor()
            return
        block, within = divmod(start, _BLOCK_BYTES)
        counter = _NONCE + (_FIRST_COUNTER + block).to_bytes(4, "big")
        self._cipher = Cipher(AES256(seed.reveal()), CTR(counter)).encryptor()
        self.fill(np.empty(within, np.uint8))

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Overwrites ``out``, contiguous, with the next ``out.size`` bytes; no allocation."""
        for start in range(0, out.size, CHUNK_BYTES):
            chunk = out[start : start + CHUNK_BYTES]
            self.fill_one(_ZEROS[: chunk.size].data, chunk.data)

    def fill_one(self, zeros: memoryview, out: memoryview) -> None:
        """As ``fill``, for as many bytes as there are ``zeros``."""
        self._cipher.update_into(zeros, out)


class MaskStreams:
    """The masks of one vector, added and subtracted as its words come by, from byte ``start`` of the streams on."""

    __slots__ = ("_scratch", "_streams")

    def __init__(self, *, add: Sequence[Secret], subtract: Sequence[Secret], start: int = 0) -> None:
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


def apply_masks(segments: Sequence[RingVector], *, add: Sequence[Secret], subtract: Sequence[Secret]) -> None:
    """All masks on a whole vector, in place. A stream runs through the segments in order."""
    streams = MaskStreams(add=add, subtract=subtract)
    for segment in segments:
        streams.apply(segment)

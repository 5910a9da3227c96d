"""Random words and sampling coins from AES-256-CTR streams keyed by the operating system.

Not torch's generator: on a CPU it keeps 32 bits of any seed, so its noise can be enumerated, and two
silos that both call ``torch.manual_seed(0)`` draw the same. Nothing here reads a global generator.

One stream per purpose. The number of sampling coins depends on the number of records; the noise must not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from cachefl_secure.crypto.secret import Secret
from cachefl_secure.names import digest_of

_CHUNK = 1 << 15  # numbers drawn at once: 256 KiB of key stream stay in the cache
_ZEROS = bytes(8 * _CHUNK)
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class StreamKey(Secret):
    """AES-256 key of one stream: whoever has it can subtract the noise."""

    __slots__ = ()


class RandomStream:
    """Uniform 64-bit words from one AES-256-CTR key stream. For one thread at a time.

    A forked child takes a fresh key at its first draw, because it would otherwise repeat its parent's
    noise, and the difference of the two releases would be free of it.
    """

    __slots__ = ("_cipher", "_fork", "_repeatable")

    def __init__(self, fixed_key: StreamKey | None = None) -> None:
        """``fixed_key`` is for tests, through ``RandomStreams.repeatable``; None asks the system."""
        self._repeatable = fixed_key is not None
        self._start(fixed_key or StreamKey(os.urandom(StreamKey.length_bytes)))

    def __repr__(self) -> str:
        return "RandomStream(...)"

    def words(self, count: int) -> NDArray[np.uint64]:
        """``count`` independent uniform words, little endian on every machine."""
        drawn = np.empty(count, dtype="<u8")
        self.fill(drawn)
        return drawn.astype(np.uint64, copy=False)

    def fill(self, words: NDArray[np.uint64]) -> None:
        """The next words into an array of little-endian ones, contiguous: as ``words``, in memory that is there."""
        if self._fork != _forks and not self._repeatable:
            self._start(StreamKey(os.urandom(StreamKey.length_bytes)))
        for start in range(0, len(words), _CHUNK):
            part = words[start : start + _CHUNK]
            self._cipher.update_into(_ZEROS[: part.nbytes], part.view(np.uint8).data)

    def coins(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Independent coins; heads with ``probability`` rounded down to a multiple of 2**-53."""
        if probability >= 1.0:
            return np.ones(count, dtype=np.bool_)
        return (self.words(count) >> np.uint64(11)) < np.uint64(int(probability * 2.0**53))

    def _start(self, key: StreamKey) -> None:
        # Counter 0 with a key that is never used twice: the key is the nonce.
        cipher = Cipher(algorithms.AES256(key.reveal()), modes.CTR(bytes(16)))
        self._cipher: CipherContext = cipher.encryptor()
        self._fork = _forks


@dataclass(frozen=True, slots=True)
class RandomStreams:
    """The streams of one silo: which records are drawn, how gradients are rounded, what is added to their sum."""

    sampling: RandomStream
    rounding: RandomStream
    noise: RandomStream

    @classmethod
    def from_system(cls) -> Self:
        """Fresh, independent keys from the operating system. The only constructor for release."""
        return cls(RandomStream(), RandomStream(), RandomStream())

    @classmethod
    def repeatable(cls, test_key: bytes) -> Self:
        """FOR TESTS: the same key gives the same coins and noise, which anybody with the key can subtract."""
        label = "cachefl-secure/repeatable-stream/1"
        keys = (digest_of(label, purpose, test_key) for purpose in (b"sampling", b"rounding", b"noise"))
        return cls(*(RandomStream(StreamKey(bytes.fromhex(key))) for key in keys))

"""The key schedule of an attempt, and the only places where masks are put on and taken off.

Rules:
 - every mask comes from HKDF over (version, purpose, manifest digest, key list digest, parties), so silos
   that were told different caches, plans, rosters, rounds, attempts or keys share no mask and their sum
   is noise;
 - of a pair, the silo whose name sorts first adds the pairwise mask, the other subtracts it;
 - a mask covers words and counters in one stream;
 - words are masked and summed modulo 2^16 or 2^32, sent modulo 2^vector_bits. The second divides the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from cachefl_secure.crypto.agreement import SharedSecret
from cachefl_secure.crypto.derive import Purpose, derive
from cachefl_secure.crypto.expand import MaskStreams, apply_masks
from cachefl_secure.crypto.seal import SealingKey
from cachefl_secure.crypto.secret import Secret
from cachefl_secure.crypto.shamir import CoefficientSeed
from cachefl_secure.names import Digest, SiloId, digest_of
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.messages import KeyList
from cachefl_secure.protocol.packing import CHUNK_WORDS, PackedVector
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.silo_secrets import MaskPrivateKey, SelfMaskSeed, ShareSeed
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate, MaskedSum, MaskedUpdate, Words


class MaskSeed(Secret):
    """Expands to one mask over one vector."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """The masks of one vector, by the sign with which they stand in it."""

    added: list[MaskSeed] = field(default_factory=list)
    subtracted: list[MaskSeed] = field(default_factory=list)

    def pairwise(self, silo: SiloId, peer: SiloId, seed: MaskSeed) -> None:
        """Notes the pairwise mask of ``silo`` and ``peer``, with the sign that ``silo`` gives it."""
        # One of a pair must add what the other subtracts (Bonawitz et al. 2017); the names decide.
        (self.added if silo < peer else self.subtracted).append(seed)


@dataclass(frozen=True, slots=True)
class KeySchedule:
    """All derivations of one attempt, after the key list is known."""

    manifest: Digest
    key_list: Digest

    @classmethod
    def of(cls, manifest: Digest, key_list: KeyList) -> KeySchedule:
        return cls(manifest, digest_of("cachefl-secure/key-list/1", wire.encode(key_list)))

    @property
    def context(self) -> bytes:
        return bytes.fromhex(self.manifest) + bytes.fromhex(self.key_list)

    def pairwise_mask(
        self, silo: SiloId, key: MaskPrivateKey, peer: SiloId, peer_public_key: bytes
    ) -> MaskSeed:
        """The same for both ends.

        Raises:
            PeerError: the peer's public key is unusable.
        """
        shared, pair = key.agree(peer_public_key, peer=peer), sorted((silo, peer))
        return derive(MaskSeed, Purpose.PAIRWISE_MASK, shared, context=self.context, parties=pair)

    def self_mask(self, silo: SiloId, seed: SelfMaskSeed) -> MaskSeed:
        return derive(MaskSeed, Purpose.SELF_MASK, seed, context=self.context, parties=[silo])

    def channel(self, shared: SharedSecret, *, dealer: SiloId, holder: SiloId) -> SealingKey:
        """The key that seals the one message from ``dealer`` to ``holder``."""
        return derive(
            SealingKey, Purpose.SHARE_CHANNEL, shared, context=self.context, parties=[dealer, holder]
        )

    def share_coefficients(self, silo: SiloId, seed: ShareSeed) -> CoefficientSeed:
        return derive(CoefficientSeed, Purpose.SHARE_COEFFICIENTS, seed, context=self.context, parties=[silo])

    def self_mask_commitment(self, silo: SiloId, seed: SelfMaskSeed) -> Digest:
        """Hides the seed, which is 32 uniform bytes, and binds the silo to it."""
        return digest_of("cachefl-secure/self-mask-commitment/1", self.context, silo.encode(), seed.reveal())


def mask(update: EncodedUpdate, masks: Masks, parameters: RoundParameters) -> MaskedUpdate:
    """The update under its masks, packed. The only way to make a vector that may be sent.

    Chunk by chunk, so that a masked word is packed before it leaves the processor's cache.
    """
    content = np.empty(parameters.packed_bytes, np.uint8)
    packed = PackedVector(content, update.words.size, parameters.vector_bits)
    counters = update.counters.copy()
    streams = MaskStreams(add=masks.added, subtract=masks.subtracted)
    for start in range(0, update.words.size, CHUNK_WORDS):
        words = update.words[start : start + CHUNK_WORDS].copy()
        streams.apply(words)
        packed.write(start, words)
    streams.apply(counters)
    return MaskedUpdate(content, counters)


def sum_masked(updates: Iterable[MaskedUpdate], parameters: RoundParameters) -> MaskedSum:
    """
    Raises:
        ValueError: an update is not as long as the parameters say.
    """
    words = np.zeros(parameters.dimension, parameters.word)
    counters = np.zeros(parameters.counters, "<u8")
    unpacked = np.empty(min(CHUNK_WORDS, words.size), parameters.word)
    for update in updates:
        packed = PackedVector(update.packed, parameters.dimension, parameters.vector_bits)
        for start in range(0, words.size, CHUNK_WORDS):
            chunk = words[start : start + CHUNK_WORDS]
            packed.read(start, unpacked[: chunk.size])
            np.add(chunk, unpacked[: chunk.size], out=chunk)
        np.add(counters, update.counters, out=counters)
    return MaskedSum(words, counters)


def unmask(total: MaskedSum, left: Masks, parameters: RoundParameters) -> AggregateSum:
    """The sum without the masks that are ``left`` in it."""
    words, counters = total.words.copy(), total.counters.copy()
    apply_masks((words, counters), add=left.subtracted, subtract=left.added)
    _lift(words, parameters.vector_bits)
    return AggregateSum(words, counters)


def _lift(words: Words, bits: int) -> None:
    """Modulo 2^bits, in place, to two's complement of the whole word: the integer in [-2^(bits-1), 2^(bits-1))."""
    signed = words.view(words.dtype.str.replace("u", "i"))
    unused = signed.dtype.type(8 * words.itemsize - bits)
    np.left_shift(signed, unused, out=signed)
    np.right_shift(signed, unused, out=signed)  # arithmetic: repeats the sign bit

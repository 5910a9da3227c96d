"""The key schedule of an attempt, and the only places where masks are put on and taken off.

Rules:
 - every mask comes from HKDF over (version, purpose, manifest digest, key list digest, parties), so silos
   that were told different caches, plans, rosters, rounds, attempts or keys share no mask and their sum
   is noise;
 - of a pair, the silo whose name sorts first adds the pairwise mask, the other subtracts it;
 - a mask covers update, counters and segments in one stream;
 - words are masked and summed modulo 2^16 or 2^32, sent modulo 2^vector_bits. The second divides the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.crypto.agreement import SharedSecret
from cachefl_secure.crypto.derive import Purpose, derive
from cachefl_secure.crypto.expand import MaskStreams, StreamSeed
from cachefl_secure.crypto.seal import SealingKey
from cachefl_secure.crypto.shamir import CoefficientSeed
from cachefl_secure.crypto.slices import in_threads, slices, threads_for
from cachefl_secure.names import Digest, SiloId, digest_of
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.messages import KeyList
from cachefl_secure.protocol.packing import CHUNK_WORDS, PackedVector, pack, unpack
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.segments import COUNT_BITS, Segment
from cachefl_secure.protocol.silo_secrets import MaskPrivateKey, SelfMaskSeed, ShareSeed
from cachefl_secure.protocol.vectors import AggregateSum, MaskedSum, MaskedUpdate, Unmasked, Words

_SUM_WORDS = 2 * CHUNK_WORDS


class MaskSeed(StreamSeed):
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
    """Of the key list."""
    context: bytes
    """Both, as bound into every derivation."""

    @classmethod
    def of(cls, manifest: Digest, key_list: KeyList) -> KeySchedule:
        digest = digest_of("cachefl-secure/key-list/1", wire.encode(key_list))
        return cls(manifest, digest, bytes.fromhex(manifest) + bytes.fromhex(digest))

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


def mask(
    update: Unmasked,
    masks: Masks,
    parameters: RoundParameters,
    *,
    content: NDArray[np.uint8] | None = None,
    threads: int | None = None,
) -> MaskedUpdate:
    """The update under its masks, packed, in ``content`` if given. The only way to make a vector that may be sent.

    Chunk by chunk, so that an entry is encoded, masked and packed before it leaves the processor's cache.
    ``threads`` changes the time, never the bytes.
    """
    size, word = parameters.dimension, parameters.word
    if content is None:
        content = np.empty(parameters.input_bytes, np.uint8)
    packed = PackedVector(content[: parameters.packed_bytes], size, parameters.vector_bits)
    threads = threads or threads_for(size)
    chunk_words = _chunk_words(threads)

    def mask_slice(start: int, stop: int) -> tuple[MaskStreams, int]:
        streams = MaskStreams(add=masks.added, subtract=masks.subtracted, start=start * word.itemsize)
        read, clamped = update.entries_from(start), 0
        scratch = np.empty(min(chunk_words, stop - start), word)
        for at in range(start, stop, chunk_words):
            words = scratch[: stop - at]
            clamped += read(words)
            streams.apply(words)
            for part in range(0, words.size, CHUNK_WORDS):  # planes are cut out in scratch of their own
                packed.write(at + part, words[part : part + CHUNK_WORDS])
        return streams, clamped

    done = in_threads(mask_slice, slices(size, threads, chunk_words))
    streams = done[-1][0]  # where the vector ends
    counters, at = update.counters.copy(), parameters.packed_bytes
    counters[0] += sum(clamped for _, clamped in done)
    streams.apply(counters)
    for segment, clear in zip(parameters.segments, update.others, strict=True):
        words = clear.copy()
        streams.apply(words)
        _write_segment(segment, words, content[at : at + segment.packed_bytes])
        at += segment.packed_bytes
    return MaskedUpdate(content, counters)


def _chunk_words(threads: int) -> int:
    """Entries at a time: all scratch of all threads stays at 4 MiB, and steps are long beside what threads wait for."""
    return 1 << (17 if threads <= 2 else 16)


def _write_segment(segment: Segment, words: Words, target: NDArray[np.uint8]) -> None:
    target[:] = words.view(np.uint8) if segment.bits == COUNT_BITS else pack(words, segment.bits)


def _read_segment(segment: Segment, source: NDArray[np.uint8]) -> Words:
    if segment.bits == COUNT_BITS:
        return np.frombuffer(source.tobytes(), segment.word)
    return unpack(source, segment.entries, segment.bits)


def sum_masked(updates: Iterable[MaskedUpdate], parameters: RoundParameters) -> MaskedSum:
    """
    Raises:
        ValueError: an update is not as long as the parameters say.
    """
    words = np.zeros(parameters.dimension, parameters.word)
    counters = np.zeros(parameters.counters, "<u8")
    others = [np.zeros(segment.entries, segment.word) for segment in parameters.segments]
    for update in updates:
        if update.packed.size != parameters.input_bytes:
            raise ValueError(f"{update.packed.size} bytes, {parameters.input_bytes} due")
        at = parameters.packed_bytes
        packed = PackedVector(update.packed[:at], parameters.dimension, parameters.vector_bits)
        for start in range(0, words.size, _SUM_WORDS):
            packed.add(start, words[start : start + _SUM_WORDS])
        np.add(counters, update.counters, out=counters)
        for segment, total in zip(parameters.segments, others, strict=True):
            np.add(total, _read_segment(segment, update.packed[at : at + segment.packed_bytes]), out=total)
            at += segment.packed_bytes
    return MaskedSum(words, counters, tuple(others))


def unmask(
    total: MaskedSum, left: Masks, parameters: RoundParameters, *, threads: int | None = None
) -> AggregateSum:
    """The sum without the masks that are ``left`` in it."""
    words, counters = np.empty(parameters.dimension, parameters.word), total.counters.copy()
    others = [each.copy() for each in total.others]
    threads = threads or threads_for(words.size)
    chunk_words = _chunk_words(threads)

    def unmask_slice(start: int, stop: int) -> MaskStreams:
        streams = MaskStreams(add=left.subtracted, subtract=left.added, start=start * words.itemsize)
        for at in range(start, stop, chunk_words):
            chunk = words[at : min(at + chunk_words, stop)]
            np.copyto(chunk, total.words[at : at + chunk.size])
            streams.apply(chunk)
            _lift(chunk, parameters.vector_bits)
        return streams

    streams = in_threads(unmask_slice, slices(words.size, threads, chunk_words))[-1]
    for each in (counters, *others):
        streams.apply(each)
    for segment, each in zip(parameters.segments, others, strict=True):
        _lift(each, segment.bits)
    return AggregateSum(words, counters, tuple(others))


def _lift(words: Words, bits: int) -> None:
    """Modulo 2^bits, in place, to two's complement of the whole word: the integer in [-2^(bits-1), 2^(bits-1))."""
    signed = words.view(words.dtype.str.replace("u", "i"))
    unused = signed.dtype.type(8 * words.itemsize - bits)
    np.left_shift(signed, unused, out=signed)
    np.right_shift(signed, unused, out=signed)  # arithmetic: repeats the sign bit

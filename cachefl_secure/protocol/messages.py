"""Every message of CF-SecAgg/1, in the order in which they travel. Fields and shape checks, no behaviour.

Each travels as the ``body`` of a ``Signed`` envelope. They are arrays on the wire, with the class name as
first element (the entries of their lists without it); nothing on the wire names a Python type to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from cachefl_secure.crypto.agreement import PUBLIC_KEY_BYTES
from cachefl_secure.crypto.seal import TAG_BYTES
from cachefl_secure.crypto.shamir import SHARE_BYTES
from cachefl_secure.crypto.sign import SIGNATURE_BYTES
from cachefl_secure.names import COORDINATOR, Digest, FederationId, PublicKeyHex, SiloId, digest_of
from cachefl_secure.protocol.parameters import MAX_SILOS

# \Z, not $: the latter also matches before a final line feed.
_Silo = Annotated[SiloId, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z")]
_Digest = Annotated[Digest, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_SigningPublicKey = Annotated[PublicKeyHex, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_PublicKey = Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
_Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
_Share = Annotated[bytes, Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
_SealedPair = Annotated[
    bytes, Meta(min_length=2 * SHARE_BYTES + TAG_BYTES, max_length=2 * SHARE_BYTES + TAG_BYTES)
]
_Counter = Annotated[int, Meta(ge=1, le=2**31)]
RoundNumber = Annotated[int, Meta(ge=1, le=1_000_000)]
"""Of a round or an attempt: small enough for the names of folders and for records, wherever it stands."""


class Phase(StrEnum):
    """Where in the round a message belongs. Bound into its signature. Text itself, since ``value`` takes a call each time."""

    MANIFEST = "manifest"
    ADVERTISE = "advertise"
    KEY_LIST = "key-list"
    SHARE = "share"
    SHARE_DELIVERY = "share-delivery"
    MASKED_INPUT = "masked-input"
    SURVIVOR_SET = "survivor-set"
    CERTIFY = "certify"
    CERTIFICATE = "certificate"
    UNMASK = "unmask"


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A silo and its long-term Ed25519 key."""

    silo: _Silo
    public_key: _SigningPublicKey


class Roster(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The silos of the federation, pinned by all. A file that enrolment makes; never sent in a round."""

    federation_id: Annotated[FederationId, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    plan_digest: _Digest
    epoch: _Counter
    """1 for the first roster; every change of it counts one more."""
    members: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MAX_SILOS)]
    """Sorted by silo."""
    previous: _Digest | None = None
    """Digest of the roster of the epoch before, and so of all before it; None in the first."""

    def __post_init__(self) -> None:
        _check_sorted([member.silo for member in self.members])
        if len({member.public_key for member in self.members}) != len(self.members):
            raise ValueError("two silos have one public key")

    @property
    def public_keys(self) -> dict[SiloId, PublicKeyHex]:
        return {member.silo: member.public_key for member in self.members}


@lru_cache(64)
def roster_digest(roster: Roster) -> Digest:
    return digest_of("cachefl-secure/roster/1", msgspec.msgpack.encode(roster))


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True):
    """Base of all that travels."""

    def __repr__(self) -> str:  # a share or a vector must not end up in a log
        return f"{type(self).__name__}(...)"


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of what stands in the lists of a message, one kind in each: it needs no name on the wire."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class Body(Message, frozen=True):
    """Base of what a ``Signed`` envelope carries."""

    phase: ClassVar[Phase]


class Signed(Message, frozen=True):
    """The envelope: ``body`` as the sender wrote it, and the sender's signature."""

    sender: _Silo
    """A silo, or ``names.COORDINATOR``."""
    phase: Phase
    body: bytes
    signature: _Signature


class Manifest(Body, frozen=True):
    """Coordinator to all: what this attempt is. Its digest binds every later signature, mask and share."""

    phase = Phase.MANIFEST
    plan_digest: _Digest
    roster_digest: _Digest
    round: RoundNumber
    attempt: RoundNumber
    cohort: Annotated[tuple[_Silo, ...], Meta(min_length=1, max_length=MAX_SILOS)]
    """Sorted. A silo's place, counted from 1, is its x in Shamir's scheme."""
    cache_digest: _Digest
    """The cache that the updates are changes of."""
    previous_record: _Digest
    """Digest of the record that led to that cache."""

    def __post_init__(self) -> None:
        _check_sorted(self.cohort)


def manifest_digest(manifest: Manifest) -> Digest:
    return digest_of("cachefl-secure/manifest/1", msgspec.msgpack.encode(manifest))


class Advertisement(Body, frozen=True):
    """Silo to all: two fresh X25519 public keys."""

    phase = Phase.ADVERTISE
    mask_public_key: _PublicKey
    channel_public_key: _PublicKey


class KeyList(Body, frozen=True):
    """Coordinator to silos: the advertisements that arrived (U1), still signed by their silos, sorted."""

    phase = Phase.KEY_LIST
    advertisements: Annotated[tuple[Signed, ...], Meta(max_length=MAX_SILOS)]

    def __post_init__(self) -> None:
        _check_sorted([advertisement.sender for advertisement in self.advertisements])


class SealedShare(Entry, frozen=True):
    """A share of a self-mask seed and one of a mask key, sealed. ``silo`` is the other end."""

    silo: _Silo
    ciphertext: _SealedPair


class SealedShares(Body, frozen=True):
    """Silo to coordinator: a sealed share for every other silo of the key list, sorted by recipient."""

    phase = Phase.SHARE
    self_mask_commitment: _Digest
    sealed: Annotated[tuple[SealedShare, ...], Meta(max_length=MAX_SILOS)]

    def __post_init__(self) -> None:
        _check_sorted([share.silo for share in self.sealed])


class ShareDelivery(Body, frozen=True):
    """Coordinator to one silo: who shared (U2), and what the others sealed for it, sorted by dealer."""

    phase = Phase.SHARE_DELIVERY
    sharers: Annotated[tuple[_Silo, ...], Meta(max_length=MAX_SILOS)]
    sealed: Annotated[tuple[SealedShare, ...], Meta(max_length=MAX_SILOS)]

    def __post_init__(self) -> None:
        _check_sorted(self.sharers)
        _check_sorted([share.silo for share in self.sealed])


class MaskedInput(Body, frozen=True):
    """Silo to coordinator: its masked update, and the head of its privacy ledger after the charge."""

    phase = Phase.MASKED_INPUT
    words: bytes
    counters: bytes
    ledger_head: _Digest


class Header(Entry, frozen=True):
    """A masked input without its vector: the digest of its body, and the silo's signature, which covers that."""

    silo: _Silo
    body_digest: _Digest
    signature: _Signature


class SurvivorSet(Body, frozen=True):
    """Coordinator to silos: whose masked input arrived (U3), proved by the headers, sorted by silo."""

    phase = Phase.SURVIVOR_SET
    headers: Annotated[tuple[Header, ...], Meta(max_length=MAX_SILOS)]

    def __post_init__(self) -> None:
        _check_sorted(self.survivors)

    @property
    def survivors(self) -> tuple[SiloId, ...]:
        return tuple(header.silo for header in self.headers)

    @property
    def uploads(self) -> dict[SiloId, Digest]:
        """Silo -> digest of its masked input."""
        return {header.silo: header.body_digest for header in self.headers}


class Statement(Body, frozen=True):
    """Silo to coordinator, once per attempt: all that this silo was shown. Its signature is what a certificate
    is made of; ``certificate.statement_of`` says what the digests are of.
    """

    phase = Phase.CERTIFY
    manifest_digest: _Digest
    key_list_digest: _Digest
    share_set_digest: _Digest
    survivor_set_digest: _Digest


class StatementSignature(Entry, frozen=True):
    """The signature of one silo's ``Statement`` envelope."""

    silo: _Silo
    signature: _Signature


class Certificate(Body, frozen=True):
    """Coordinator to silos: signatures of a quorum over one and the same statement, sorted by silo."""

    phase = Phase.CERTIFICATE
    signatures: Annotated[tuple[StatementSignature, ...], Meta(max_length=MAX_SILOS)]

    def __post_init__(self) -> None:
        _check_sorted([signature.silo for signature in self.signatures])


class RevealedShare(Entry, frozen=True):
    """A share that the sender holds of a secret of ``silo``."""

    silo: _Silo
    share: _Share


class UnmaskShares(Body, frozen=True):
    """Silo to coordinator: a self-mask share per survivor, a mask-key share per dropped silo, never both."""

    phase = Phase.UNMASK
    self_mask: Annotated[tuple[RevealedShare, ...], Meta(max_length=MAX_SILOS)]
    mask_key: Annotated[tuple[RevealedShare, ...], Meta(max_length=MAX_SILOS)]

    def __post_init__(self) -> None:
        for shares in (self.self_mask, self.mask_key):
            _check_sorted([share.silo for share in shares])
        if {share.silo for share in self.self_mask} & {share.silo for share in self.mask_key}:
            raise ValueError("both kinds of share of one silo")


def _check_sorted(silos: Sequence[str]) -> None:
    """One order only, and nobody twice: a list has one encoding."""
    if any(left >= right for left, right in pairwise(silos)):
        raise ValueError("silos are not strictly sorted")
    if COORDINATOR in silos:
        raise ValueError(f"{COORDINATOR!r} is no silo")

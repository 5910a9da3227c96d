"""Parcels: one request or answer on its way through a store that nobody trusts.

A parcel is signed by its sender with the identity key that others have pinned, and sealed to the transport key that
its recipient announced on a contact card, which is signed as well. Whoever holds the store sees who writes to whom,
when, in which phase, and how much; not what.

That keeps strangers from looking on, and finds what was cut or changed, here and not in the protocol. The secrecy of
an update rests on none of it: what is inside is masked and signed by ``protocol`` already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import msgspec
from msgspec import Meta

from cachefl_secure.crypto import hpke, sign
from cachefl_secure.crypto.hpke import TransportKey
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import BadSignature, UnexpectedMessage
from cachefl_secure.names import FederationId, PublicKeyHex, digest_of
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.messages import Message

_PARCEL_PURPOSE = "cachefl-secure/parcel/1"
_CARD_PURPOSE = "cachefl-secure/contact-card/1"
_HEADER_BYTES = 1024

_Party = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z")]
_Signature = Annotated[bytes, Meta(min_length=sign.SIGNATURE_BYTES, max_length=sign.SIGNATURE_BYTES)]
_Digest = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]


class ContactCard(Message, frozen=True):
    """A party's transport key, signed with its identity key."""

    federation_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    party: _Party
    public_key: Annotated[bytes, Meta(min_length=hpke.PUBLIC_KEY_BYTES, max_length=hpke.PUBLIC_KEY_BYTES)]
    signature: _Signature


class Label(Message, frozen=True):
    """What is written on a parcel, for everybody to read."""

    federation_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    sender: _Party
    recipient: _Party
    number: Annotated[int, Meta(ge=1, le=2**53)]
    """Of the exchange at the coordinator."""
    phase: Annotated[str, Meta(pattern=r"^[a-z-]{1,32}\Z")]
    answers: _Digest = ""
    """Digest of the request that this is the answer to; empty for a request."""


class Parcel(Message, frozen=True, dict=True):
    """A label, and what is sealed for its recipient."""

    label: Label
    sealed: memoryview
    """A view of what was read or sealed: an update is not copied on its way."""
    signature: _Signature

    @cached_property
    def covered(self) -> bytes:
        """What the signature covers. Kept, because what is sealed may be long to hash."""
        return _covered(self.label, self.sealed)

    def pieces(self) -> tuple[bytes | memoryview, ...]:
        """``wire.encode`` of it, in pieces."""
        before = wire.opening(Parcel, [self.label], len(self.sealed))
        return before, self.sealed, wire.bytes_opening(len(self.signature)) + self.signature

    @property
    def digest(self) -> str:
        """Names this parcel, label and content, in its answer."""
        return digest_of("cachefl-secure/parcel-digest/1", self.covered)


@dataclass(frozen=True, slots=True)
class Sender:
    """A party's own end: who it is in which federation, and its keys."""

    federation_id: FederationId
    party: str
    identity: SigningKey
    transport_key: TransportKey

    def card(self) -> bytes:
        """This party's contact card."""
        public_key = self.transport_key.public_key
        covered = _card_bytes(self.federation_id, self.party, public_key)
        signature = self.identity.sign(_CARD_PURPOSE, covered)
        return wire.encode(ContactCard(self.federation_id, self.party, public_key, signature))

    def pack(
        self, recipient: str, public_key: bytes, number: int, phase: str, content: bytes, answers: str = ""
    ) -> Parcel:
        """
        Raises:
            PeerError: the recipient's transport key is unusable.
        """
        label = Label(self.federation_id, self.party, recipient, number, phase, answers)
        sealed = memoryview(hpke.seal_to(public_key, content, wire.encode(label), peer=recipient))
        covered = _covered(label, sealed)
        parcel = Parcel(label, sealed, self.identity.sign(_PARCEL_PURPOSE, covered))
        parcel.__dict__["covered"] = covered
        return parcel

    def unpack(self, parcel: Parcel) -> bytes:
        """The content of a parcel for this party, whose signature the caller has checked.

        Raises:
            PeerError: it does not open.
        """
        return self.transport_key.open(parcel.sealed, wire.encode(parcel.label), peer=parcel.label.sender)


def read_card(
    raw: bytes, federation_id: FederationId, party: str, identities: Iterable[PublicKeyHex]
) -> bytes:
    """The transport key on the card, if one of the party's identity keys signed it.

    Raises:
        MalformedMessage, UnexpectedMessage, BadSignature: it is no such card.
    """
    card = wire.decode(raw, ContactCard, limit_bytes=_HEADER_BYTES, peer=party)
    if (card.federation_id, card.party) != (federation_id, party):
        raise UnexpectedMessage(party, "contact card of another party or federation")
    _verify_by_any(
        identities,
        _CARD_PURPOSE,
        _card_bytes(federation_id, party, card.public_key),
        card.signature,
        party,
    )
    return card.public_key


def read_parcel(
    raw: bytes,
    *,
    federation_id: FederationId,
    sender: str,
    recipient: str,
    identities: Iterable[PublicKeyHex],
) -> Parcel:
    """The parcel between these two, signed with one of the sender's identity keys. Not opened yet.

    Raises:
        MalformedMessage: cut off, or never a parcel.
        UnexpectedMessage: between others, or of another federation: moved to another place.
        BadSignature: changed, or not its sender's.
    """
    parcel = wire.decode(raw, Parcel, limit_bytes=len(raw), peer=sender)
    label = parcel.label
    if (label.federation_id, label.sender, label.recipient) != (federation_id, sender, recipient):
        raise UnexpectedMessage(sender, "parcel of another place")
    _verify_by_any(identities, _PARCEL_PURPOSE, parcel.covered, parcel.signature, sender)
    return parcel


def limit_bytes(content: int) -> int:
    """The longest parcel with content of this many bytes."""
    return content + hpke.OVERHEAD_BYTES + _HEADER_BYTES


def _verify_by_any(
    identities: Iterable[PublicKeyHex], purpose: str, covered: bytes, signature: bytes, peer: str
) -> None:
    for public_key in identities:
        try:
            return sign.verify(public_key, purpose, covered, signature, peer=peer)
        except BadSignature:
            continue
    raise BadSignature(peer, f"signature of {purpose} does not verify")


def _covered(label: Label, sealed: memoryview) -> bytes:
    return wire.encode(label) + hashlib.sha256(sealed).digest()


def _card_bytes(federation_id: str, party: str, public_key: bytes) -> bytes:
    return msgspec.json.encode((federation_id, party, public_key.hex()))

"""Parcels and contact cards: what was changed, cut or moved is refused with the documented error and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.crypto.hpke import TransportKey
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import BadSignature, MalformedMessage, PeerError, UnexpectedMessage
from cachefl_secure.names import COORDINATOR, FederationId, PublicKeyHex, digest_of
from cachefl_secure.protocol import wire
from cachefl_secure.transport import parcels
from cachefl_secure.transport.parcels import Parcel, Sender, read_card, read_parcel

HERE, ELSEWHERE = FederationId("0f" * 16), FederationId("f0" * 16)
DOCUMENTED = {MalformedMessage, UnexpectedMessage, BadSignature}


def party(name: str, federation_id: FederationId = HERE, key: str = "") -> Sender:
    """The same keys for the same name, in every federation."""
    identity = SigningKey(bytes.fromhex(digest_of("test/identity", (key or name).encode())))
    transport_key = TransportKey(bytes.fromhex(digest_of("test/transport", (key or name).encode())))
    return Sender(federation_id, name, identity, transport_key)


SILO, COORD, OTHER = party("silo-1"), party(COORDINATOR), party("silo-2")


def packed(
    content: bytes = b"content", sender: Sender = SILO, recipient: Sender = COORD, **label: object
) -> Parcel:
    number, phase = label.get("number", 7), label.get("phase", "share")
    assert isinstance(number, int)
    return sender.pack(recipient.party, recipient.transport_key.public_key, number, str(phase), content)


def read(
    raw: bytes,
    sender: Sender = SILO,
    recipient: Sender = COORD,
    federation_id: FederationId = HERE,
    identities: Iterable[PublicKeyHex] | None = None,
) -> Parcel:
    return read_parcel(
        raw,
        federation_id=federation_id,
        sender=sender.party,
        recipient=recipient.party,
        identities=(sender.identity.public_key,) if identities is None else identities,
    )


def take(raw: bytes) -> bytes:
    """All that the coordinator does to a parcel."""
    return COORD.unpack(read(raw))


def refusal(read_it: Callable[[], object]) -> type[PeerError]:
    with pytest.raises(PeerError) as refused:
        read_it()
    return type(refused.value)


def changes(raw: bytes) -> list[bytes]:
    """Every bit of every byte changed, every cut, and a byte more."""
    changed = [
        bytes([*raw[:place], raw[place] ^ 1 << bit, *raw[place + 1 :]])
        for place in range(len(raw))
        for bit in range(8)
    ]
    return [*changed, *(raw[:length] for length in range(len(raw))), raw + b"\0", b"\0" + raw]


@given(st.binary(max_size=300), st.integers(1, 2**53), st.sampled_from(["hello", "masked-input"]))
def test_a_parcel_arrives_as_it_was_packed(content: bytes, number: int, phase: str) -> None:
    parcel = packed(content, number=number, phase=phase)
    raw = wire.encode(parcel)
    assert len(raw) <= parcels.limit_bytes(len(content))
    assert b"".join(parcel.pieces()) == raw
    arrived = read(raw)
    assert (arrived, arrived.digest) == (parcel, parcel.digest)
    assert COORD.unpack(arrived) == content


@pytest.mark.parametrize("size", [0, 1 << 16, (1 << 16) + 1, 1 << 20])
def test_a_long_parcel_arrives_as_it_was_packed(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    parcel = packed(content)
    raw = wire.encode(parcel)
    assert b"".join(parcel.pieces()) == raw
    assert len(raw) <= parcels.limit_bytes(size)
    assert take(raw) == content


def test_every_changed_bit_and_every_cut_of_a_parcel_is_refused_as_documented() -> None:
    kinds = {refusal(lambda bad=bad: take(bad)) for bad in changes(wire.encode(packed()))}  # type: ignore[misc]
    assert kinds == DOCUMENTED


def test_every_changed_bit_and_every_cut_of_a_card_is_refused_as_documented() -> None:
    kinds = {
        refusal(lambda bad=bad: read_card(bad, HERE, SILO.party, (SILO.identity.public_key,)))  # type: ignore[misc]
        for bad in changes(SILO.card())
    }
    assert kinds == DOCUMENTED


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_any_bytes_are_refused_as_documented(data: bytes) -> None:
    assert refusal(lambda: read(data)) in DOCUMENTED
    assert refusal(lambda: read_card(data, HERE, "silo-1", (SILO.identity.public_key,))) in DOCUMENTED


def test_a_parcel_of_another_place_is_refused() -> None:
    """Between others, the wrong way round, or of another federation with the same keys."""
    raw = wire.encode(packed())
    for read_it in (
        lambda: read(raw, sender=OTHER),
        lambda: read(raw, recipient=OTHER),
        lambda: read(raw, sender=COORD, recipient=SILO),
        lambda: read(raw, federation_id=ELSEWHERE),
        lambda: read(wire.encode(packed(sender=party("silo-1", ELSEWHERE)))),
    ):
        assert refusal(read_it) is UnexpectedMessage


def test_a_parcel_under_another_label_is_refused_by_its_signature_and_by_its_seal() -> None:
    parcel = packed()
    for change in (
        {"number": 8},
        {"phase": "sync"},
        {"answers": "ab" * 32},
        {"sender": "silo-2"},
        {"recipient": "silo-2"},
        {"federation_id": ELSEWHERE},
    ):
        label = msgspec.structs.replace(parcel.label, **change)
        moved = Parcel(label, parcel.sealed, parcel.signature)
        sender, recipient = party(label.sender), party(label.recipient)
        federation_id, identities = FederationId(label.federation_id), (SILO.identity.public_key,)
        raw = wire.encode(moved)
        assert refusal(lambda: read(raw, sender, recipient, federation_id, identities)) is BadSignature  # noqa: B023
        # Nor does it open where somebody signs it as his own: HKDF's info is the label.
        assert refusal(lambda: COORD.unpack(moved)) is PeerError  # noqa: B023


def test_another_sender_is_refused() -> None:
    """Who knows all that is public packs a parcel in the silo's name, or signs the silo's sealed bytes himself."""
    forged = party("silo-1", key="stranger")
    assert refusal(lambda: read(wire.encode(packed(sender=forged)))) is BadSignature
    assert refusal(lambda: read(wire.encode(packed()), identities=())) is BadSignature
    parcel = packed()
    stolen = OTHER.identity.sign(parcels._PARCEL_PURPOSE, parcels._covered(parcel.label, parcel.sealed))
    assert refusal(lambda: read(wire.encode(Parcel(parcel.label, parcel.sealed, stolen)))) is BadSignature


def test_a_parcel_for_another_key_does_not_open() -> None:
    raw = wire.encode(SILO.pack(COORDINATOR, OTHER.transport_key.public_key, 7, "share", b"content"))
    assert refusal(lambda: take(raw)) is PeerError


def test_one_of_several_identities_is_enough() -> None:
    keys = (OTHER.identity.public_key, PublicKeyHex("zz"), SILO.identity.public_key)
    assert COORD.unpack(read(wire.encode(packed()), identities=keys)) == b"content"
    assert read_card(SILO.card(), HERE, "silo-1", keys) == SILO.transport_key.public_key


def test_a_card_of_another_party_federation_or_key_is_refused() -> None:
    own, card = (SILO.identity.public_key,), SILO.card()
    assert read_card(card, HERE, "silo-1", own) == SILO.transport_key.public_key
    assert refusal(lambda: read_card(card, ELSEWHERE, "silo-1", own)) is UnexpectedMessage
    assert refusal(lambda: read_card(card, HERE, "silo-2", own)) is UnexpectedMessage
    assert refusal(lambda: read_card(card, HERE, "silo-1", (OTHER.identity.public_key,))) is BadSignature
    assert refusal(lambda: read_card(card, HERE, "silo-1", ())) is BadSignature
    assert refusal(lambda: read_card(card + bytes(2000), HERE, "silo-1", own)) is MalformedMessage


def test_a_card_does_not_pass_for_a_parcel_nor_a_parcel_for_a_card() -> None:
    assert refusal(lambda: read(SILO.card())) is MalformedMessage
    own = (SILO.identity.public_key,)
    assert refusal(lambda: read_card(wire.encode(packed()), HERE, "silo-1", own)) is MalformedMessage


def test_a_parcels_digest_names_label_and_content() -> None:
    parcel = packed()
    again = packed()
    moved = Parcel(msgspec.structs.replace(parcel.label, number=8), parcel.sealed, parcel.signature)
    assert len({parcel.digest, again.digest, moved.digest}) == 3  # sealed anew is another parcel
    assert read(wire.encode(parcel)).digest == parcel.digest


def test_an_unusable_key_on_a_card_is_the_peers_error() -> None:
    assert refusal(lambda: SILO.pack(COORDINATOR, bytes(32), 1, "share", b"")) is PeerError

"""``decode`` returns a message or raises ``MalformedMessage``, nothing else; one message has one encoding."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachefl_secure.errors import MalformedMessage
from cachefl_secure.names import Digest, FederationId, PublicKeyHex, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.messages import (
    Advertisement,
    Certificate,
    Header,
    KeyList,
    Manifest,
    MaskedInput,
    Member,
    Message,
    Phase,
    RevealedShare,
    Roster,
    SealedShare,
    SealedShares,
    ShareDelivery,
    Signed,
    Statement,
    StatementSignature,
    SurvivorSet,
    UnmaskShares,
    manifest_digest,
    roster_digest,
)
from cachefl_secure.protocol.parameters import MAX_SILOS
from tests.protocol.rounds import federation, parameters_for, random_updates, run_round

A, B = SiloId("silo-a"), SiloId("silo-b")
D = Digest("0a" * 32)
SIGNED = Signed(A, Phase.ADVERTISE, b"body", bytes(64))
EXAMPLES: list[Message] = [
    Manifest(D, D, 1, 1, (A, B), D, D),
    Advertisement(bytes(32), bytes(32)),
    SIGNED,
    KeyList((SIGNED,)),
    SealedShares(D, (SealedShare(B, bytes(88)),)),
    ShareDelivery((A, B), (SealedShare(B, bytes(88)),)),
    MaskedInput(bytes(6), bytes(8), D),
    SurvivorSet((Header(A, D, bytes(64)), Header(B, D, bytes(64)))),
    Statement(D, D, D, D),
    Certificate((StatementSignature(A, bytes(64)),)),
    UnmaskShares((RevealedShare(A, bytes(36)),), (RevealedShare(B, bytes(36)),)),
]
KINDS = [type(example) for example in EXAMPLES]


def decode(data: bytes, kind: type[Message]) -> Message:
    return wire.decode(data, kind, limit_bytes=10_000, peer="x")


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_message_comes_back_from_its_bytes(message: Message) -> None:
    assert decode(wire.encode(message), type(message)) == message


@given(st.binary(max_size=600), st.sampled_from(KINDS))
@settings(max_examples=500)
@example(b"\x91" * 600, KeyList)
@example(b"\xdd\xff\xff\xff\xff", KeyList)
@example(b"\xc6\xff\xff\xff\xff", MaskedInput)
@example(b"\x93\xadAdvertisement\xa1\xff\xa0", Advertisement)
def test_arbitrary_bytes_are_a_message_or_malformed(data: bytes, kind: type[Message]) -> None:
    with contextlib.suppress(MalformedMessage):
        assert wire.encode(decode(data, kind)) == data


@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=500)
def test_changed_bytes_are_a_canonical_message_or_malformed(message: Message, data: st.DataObject) -> None:
    raw = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedMessage):
        assert wire.encode(decode(bytes(raw), type(message))) == bytes(raw)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=500)
def test_the_check_that_encodes_no_long_field_finds_what_encoding_again_finds(
    message: Message, data: st.DataObject
) -> None:
    """Every byte string counts as long here; lengths are also written in longer forms than need be."""
    raw = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(raw) - 1))
        if raw[at] == 0xC4 and data.draw(st.booleans()):
            raw[at : at + 1] = b"\xc5\x00"
        elif raw[at] == 0xD9 and data.draw(st.booleans()):
            raw[at : at + 1] = b"\xda\x00"
        else:
            raw[at] = data.draw(st.integers(0, 255))
    try:
        again = msgspec.msgpack.decode(raw, type=type(message))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_LONG_BYTES", 0)
        assert wire._is_canonical(again, bytes(raw)) is (wire.encode(again) == raw)


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65_535, 65_536, 70_000])
def test_a_byte_string_begins_as_messagepack_says(length: int) -> None:
    message = Signed(A, Phase.SHARE, bytes(length), bytes(64))
    raw = wire.encode(message)
    assert raw.startswith(wire.opening(Signed, (A, Phase.SHARE), length))
    assert wire.decode(raw, Signed, limit_bytes=len(raw), peer="x") == message


@given(st.sampled_from(KINDS), st.lists(json_like, max_size=8))
@settings(max_examples=500)
def test_arbitrary_values_are_a_message_or_malformed(kind: type[Message], fields: list[object]) -> None:
    with contextlib.suppress(MalformedMessage):
        decode(msgspec.msgpack.encode([kind.__name__, *fields]), kind)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_truncated_extended_and_mistaken_messages_are_malformed(message: Message) -> None:
    raw = wire.encode(message)
    fields = msgspec.msgpack.decode(raw)
    bad = [raw[:size] for size in range(len(raw))] + [raw + b"\x00", msgspec.msgpack.encode([*fields, 0])]
    bad.append(msgspec.msgpack.encode(["Unknown", *fields[1:]]))
    for data in bad:
        with pytest.raises(MalformedMessage):
            decode(data, type(message))
    for kind in KINDS:
        if kind is not type(message):
            with pytest.raises(MalformedMessage):
                decode(raw, kind)


def test_a_number_in_a_longer_form_is_not_canonical() -> None:
    raw = wire.encode(Manifest(D, D, 1, 1, (A, B), D, D))
    longer = raw.replace(b"\x01\x01", b"\xcc\x01\x01", 1)
    assert msgspec.msgpack.decode(longer) == msgspec.msgpack.decode(raw)
    with pytest.raises(MalformedMessage, match="canonically"):
        decode(longer, Manifest)


def test_too_long_a_message_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MalformedMessage, match="101 bytes, at most 100"):
        wire.decode(b"\xc1" * 101, Manifest, limit_bytes=100, peer="x")


def test_the_limits_hold_every_message_of_the_largest_cohort() -> None:
    n = MAX_SILOS
    parameters = parameters_for(n, dimension=10, colluders=10)
    names = tuple(SiloId(f"silo-{i:04d}".ljust(63, "x")) for i in range(n))
    signed = [Signed(name, Phase.ADVERTISE, bytes(100), bytes(64)) for name in names]
    sealed = tuple(SealedShare(name, bytes(88)) for name in names)
    revealed = tuple(RevealedShare(name, bytes(36)) for name in names)
    largest: list[Message] = [
        KeyList(tuple(signed)),
        SealedShares(D, sealed),
        ShareDelivery(names, sealed),
        SurvivorSet(tuple(Header(name, D, bytes(64)) for name in names)),
        Statement(D, D, D, D),
        Certificate(tuple(StatementSignature(name, bytes(64)) for name in names)),
        UnmaskShares(revealed, ()),
        MaskedInput(bytes(parameters.packed_bytes), bytes(8), D),
    ]
    for message in largest:
        envelope = Signed(names[0], Phase.SHARE_DELIVERY, wire.encode(message), bytes(64))
        assert len(wire.encode(envelope)) <= wire.limit_bytes(type(message), parameters)
    assert len(wire.encode(Manifest(D, D, 2**31, 2**31, names, D, D))) < wire.MANIFEST_LIMIT_BYTES - 300


@pytest.mark.parametrize("name", ["", "A", "-a", "a_b", "a" * 64, "a\n", "../a", "coordinator", "ä", "a b"])
def test_a_name_that_is_no_silo_is_malformed(name: str) -> None:
    with pytest.raises(MalformedMessage):
        decode(msgspec.msgpack.encode(["ShareDelivery", [name], []]), ShareDelivery)


def test_lists_of_silos_are_sorted_and_name_nobody_twice() -> None:
    for silos in ([A, A], [B, A]):
        with pytest.raises(MalformedMessage):
            decode(msgspec.msgpack.encode(["ShareDelivery", silos, []]), ShareDelivery)
        headers = [[silo, D, bytes(64)] for silo in silos]
        with pytest.raises(MalformedMessage):
            decode(msgspec.msgpack.encode(["SurvivorSet", headers]), SurvivorSet)
        signatures = [[silo, bytes(64)] for silo in silos]
        with pytest.raises(MalformedMessage):
            decode(msgspec.msgpack.encode(["Certificate", signatures]), Certificate)


@pytest.mark.claim("C1")
def test_both_kinds_of_share_of_one_silo_do_not_fit_into_a_message() -> None:
    share = [A, bytes(36)]
    with pytest.raises(MalformedMessage):
        decode(msgspec.msgpack.encode(["UnmaskShares", [share], [share]]), UnmaskShares)
    with pytest.raises(ValueError, match="both kinds"):
        UnmaskShares((RevealedShare(A, bytes(36)),), (RevealedShare(A, bytes(36)),))


def test_a_roster_names_every_silo_and_key_once() -> None:
    keys = [PublicKeyHex("01" * 32), PublicKeyHex("02" * 32)]
    roster = Roster(FederationId("0f" * 16), D, 1, (Member(A, keys[0]), Member(B, keys[1])))
    assert roster.public_keys == {A: keys[0], B: keys[1]}
    other = msgspec.structs.replace(roster, epoch=2)
    assert roster_digest(roster) != roster_digest(other)
    for members in ((Member(A, keys[0]), Member(B, keys[0])), (Member(B, keys[0]), Member(A, keys[1]))):
        with pytest.raises(ValueError, match=r"sorted|one public key"):
            Roster(FederationId("0f" * 16), D, 1, members)


def test_the_manifest_digest_depends_on_every_field() -> None:
    manifest = Manifest(D, D, 1, 1, (A, B), D, D)
    changes: list[dict[str, object]] = [
        {"plan_digest": Digest("0b" * 32)},
        {"roster_digest": Digest("0b" * 32)},
        {"round": 2},
        {"attempt": 2},
        {"cohort": (A,)},
        {"cache_digest": Digest("0b" * 32)},
        {"previous_record": Digest("0b" * 32)},
    ]
    assert {next(iter(change)) for change in changes} == set(Manifest.__struct_fields__)
    digests = {manifest_digest(msgspec.structs.replace(manifest, **change)) for change in changes}
    assert len(digests | {manifest_digest(manifest)}) == len(changes) + 1


def test_no_message_prints_its_content() -> None:
    finished_names = {repr(message) for message in EXAMPLES}
    assert finished_names == {f"{kind.__name__}(...)" for kind in KINDS}


def test_a_message_of_a_real_round_stays_below_its_documented_size() -> None:
    """Evidence for the overhead: a masked input is the vector and less than 300 bytes, everything else is small."""
    fed = federation(parameters_for(10, dimension=1000, colluders=1))
    finished = run_round(fed, random_updates(fed))
    silo = fed.silos[0]
    sizes = {phase: len(messages[silo]) for phase, messages in finished.seen.items()}
    assert sizes[Phase.MASKED_INPUT] < 2 * 1000 + 300
    assert sum(sizes.values()) - sizes[Phase.MASKED_INPUT] < 8 * 1024

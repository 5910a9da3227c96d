"""What is fuzzed, as functions of bytes: hypothesis calls them in every run, atheris for as long as it is let.

The contract of a parser: a value or its named error, nothing else, whatever the bytes.
The contract of a silo's session: whatever comes, in whatever order, it answers or raises a ``PeerError`` and is then
as before; it never gives two answers to one phase, nor both kinds of share of one silo. That of the coordinator's:
each step ends in messages, in the exact sum, or in a named end; out of order it refuses and is as before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from cachefl_secure.cache.model import cache_from_bytes, cache_to_bytes
from cachefl_secure.crypto.hpke import TransportKey
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import CacheflError, ConfigError, PeerError, RecordRejected
from cachefl_secure.federation import enrolment, letters, record
from cachefl_secure.federation.enrolment import (
    Invite,
    JoinRequest,
    SignedRoster,
    make_roster,
    open_roster,
    sign_roster,
    write_invite,
    write_join_request,
)
from cachefl_secure.federation.record import (
    RecordedCertificate,
    RoundRecord,
    SignedRecord,
    open_record,
    sign_record,
)
from cachefl_secure.federation.roster_change import (
    RosterChange,
    RosterHistory,
    approve,
    change_from_bytes,
    change_to_bytes,
)
from cachefl_secure.names import COORDINATOR, FederationId, PublicKeyHex, SiloId
from cachefl_secure.plan import FederationPlan, decode_toml
from cachefl_secure.privacy.verification import read_history
from cachefl_secure.protocol import messages, wire
from cachefl_secure.protocol.attempt import open_manifest
from cachefl_secure.protocol.journal import journal_from_bytes, journal_to_bytes
from cachefl_secure.protocol.masked_input import InputLayout
from cachefl_secure.protocol.messages import Phase
from cachefl_secure.protocol.silo import SiloSession
from cachefl_secure.protocol.unmasking import unmasking_from_bytes, unmasking_to_bytes
from cachefl_secure.transport import parcels
from tests.fuzz.sessions import drive_coordinator, drive_session, mutate, played
from tests.privacy.examples import SIGNING_KEY, cache_of, new_ledger, spend
from tests.protocol.rounds import Federation, Round, a_plan, fixed, run_round

Parser = tuple[Callable[[bytes], object], tuple[type[Exception], ...]]

_HEX64 = "1e" * 32

_KINDS = (
    messages.Signed,
    messages.Manifest,
    messages.Advertisement,
    messages.KeyList,
    messages.SealedShares,
    messages.ShareDelivery,
    messages.MaskedInput,
    messages.SurvivorSet,
    messages.Statement,
    messages.Certificate,
    messages.UnmaskShares,
    letters.Hello,
    letters.Standing,
    letters.Sync,
    letters.Receipt,
    letters.Reply,
    parcels.Parcel,
    parcels.ContactCard,
)


def _wire_parser(kind: type[messages.Message]) -> Parser:
    return (
        lambda data: wire.decode(data, kind, limit_bytes=1 << 16, peer="fuzzer"),
        (PeerError,),
    )


def _roster_of(body: bytes) -> bytes:
    """As a coordinator that lies signs it."""
    signature = SigningKey(fixed("coordinator")).sign(enrolment._ROSTER_PURPOSE, body)
    return msgspec.msgpack.encode(SignedRoster(body, signature))


def _follow(data: bytes, plan: FederationPlan) -> object:
    """As a silo of a federation of three takes a change."""
    first = make_roster(plan, played().fed.roster.members)
    return RosterHistory.first(plan, first).follow(change_from_bytes(data))


def _sender(name: str, fed: Federation) -> parcels.Sender:
    """A party with its transport key."""
    key = TransportKey(fixed(f"transport key of {name}"))
    return parcels.Sender(FederationId(_HEX64[:32]), name, fed.identities[name], key)


def _read_parcel(data: bytes, fed: Federation) -> object:
    """As the coordinator takes what lies in a silo's place."""
    silo = fed.silos[0]
    own, identities = _sender(COORDINATOR, fed), (fed.identities[silo].public_key,)
    place = {"federation_id": own.federation_id, "sender": silo, "recipient": COORDINATOR}
    parcel = parcels.read_parcel(data, **place, identities=identities)  # type: ignore[arg-type]
    assert wire.encode(parcel) == data
    return parcel


def _read_card(data: bytes, fed: Federation) -> object:
    """As the coordinator takes what lies among a silo's contact cards."""
    silo = fed.silos[0]
    return parcels.read_card(data, FederationId(_HEX64[:32]), silo, (fed.identities[silo].public_key,))


def _record_of(body: bytes) -> bytes:
    text = body.decode("utf-8", "replace")
    signature = SigningKey(fixed("coordinator")).sign(record._PURPOSE, text.encode())
    return msgspec.json.encode(SignedRecord(text, signature.hex()))


def _both_readers(data: bytes, fed: Federation) -> object:
    """Masked inputs are read in place; that takes what ``decode`` takes, has the same parts, and nothing else."""
    silo, parameters = fed.silos[1], fed.parameters
    arrived = InputLayout.of(silo, parameters).read(data)
    try:
        signed = wire.decode(data, messages.Signed, limit_bytes=1 << 16, peer=silo)
        if (signed.sender, signed.phase) != (silo, Phase.MASKED_INPUT):
            raise PeerError(silo, "another envelope")
        body = wire.decode(signed.body, messages.MaskedInput, limit_bytes=1 << 16, peer=silo)
        if (len(body.words), len(body.counters)) != (parameters.input_bytes, parameters.counter_bytes):
            raise PeerError(silo, "another length")
    except PeerError:
        assert arrived is None
        raise
    assert arrived is not None
    assert arrived.vector.packed.tobytes() == body.words
    assert arrived.vector.counters.tobytes() == body.counters
    assert (arrived.ledger_head, bytes(arrived.body)) == (body.ledger_head, signed.body)
    assert arrived.signature == signed.signature
    return arrived


@cache
def parsers() -> dict[str, Parser]:
    """Name -> (parser, its errors)."""
    plan = a_plan()
    named: dict[str, Parser] = {kind.__name__: _wire_parser(kind) for kind in _KINDS}
    return named | {
        "signed manifest": (lambda data: open_manifest(data, plan.coordinator_key), (PeerError,)),
        "roster": (lambda data: open_roster(data, plan), (PeerError,)),
        "roster change": (lambda data: _follow(data, plan), (PeerError,)),
        "signed roster": (lambda data: open_roster(_roster_of(data), plan), (PeerError,)),
        "record": (lambda data: open_record(data, plan), (RecordRejected,)),
        "signed record": (lambda data: open_record(_record_of(data), plan), (RecordRejected,)),
        "parcel": (lambda data: _read_parcel(data, played().fed), (PeerError,)),
        "contact card": (lambda data: _read_card(data, played().fed), (PeerError,)),
        "masked input": (lambda data: _both_readers(data, played().fed), (PeerError,)),
        "receipts": (lambda data: letters.read_receipts(data, file="receipts.json"), (CacheflError,)),
        "invite": (lambda data: decode_toml(data, Invite, file="invite.toml"), (ConfigError,)),
        "join request": (
            lambda data: decode_toml(data, JoinRequest, file="join-request.toml"),
            (ConfigError,),
        ),
        "cache": (cache_from_bytes, (ConfigError,)),
        "ledger": (
            lambda data: read_history(data, SIGNING_KEY.public_key, file="ledger.jsonl"),
            (CacheflError,),
        ),
        "session journal": (journal_from_bytes, (ValueError,)),
        "unmasking round": (unmasking_from_bytes, (ValueError,)),
    }


def parse(name: str, data: bytes) -> bool:
    """Whether the bytes are a value. Anything but the named error passes through: that is what a fuzzer finds."""
    parser, errors = parsers()[name]
    try:
        parser(data)
    except errors:
        return False
    return True


def seeds() -> list[bytes]:
    """Valid inputs of the parsers."""
    game = played()
    finished: Round = game.finished
    every = [raw for phase in finished.seen.values() for raw in phase.values()]
    bodies = [wire.decode(raw, messages.Signed, limit_bytes=1 << 20, peer="x").body for raw in every]
    session: SiloSession = finished.silos[game.me]
    sealed = [journal_to_bytes(session._journal), *_unmasking(game.fed, game.updates)]
    return [*every, *bodies, *sealed, *_letters(), *_files(game.fed), *_mail(game.fed)]


def _mail(fed: Federation) -> list[bytes]:
    """A card and two parcels, one long; what they hold is not sealed, so that it is the same in every run."""
    sender = _sender(fed.silos[0], fed)
    found = [sender.card()]
    for sealed in (memoryview(b"sealed"), memoryview(bytes(1 << 16))):
        label = parcels.Label(sender.federation_id, sender.party, COORDINATOR, 3, letters.HELLO, _HEX64)
        signature = sender.identity.sign(parcels._PARCEL_PURPOSE, parcels._covered(label, sealed))
        found.append(wire.encode(parcels.Parcel(label, sealed, signature)))
    return found


def _letters() -> list[bytes]:
    silo = SiloId("silo-001")
    countersigned = letters.Countersignature(silo, bytes(64))
    receipt = letters.Receipt(silo, 3, _HEX64, _HEX64, _HEX64, bytes(64), countersigned)
    return [
        *map(
            wire.encode,
            (
                letters.Hello(_HEX64, receipt),
                letters.Standing(True, True, True, 3, _HEX64, True, 4),
                letters.Sync(b"", b"", (letters.SyncedRound(b"{}", b"sum"),), (countersigned,)),
                receipt,
                letters.Reply(b"answer"),
            ),
        ),
        letters.write_receipts({silo: [receipt]}),
    ]


def _files(fed: Federation) -> list[bytes]:
    plan, key = a_plan(), fed.identities["coordinator"]
    ask = write_join_request(fed.silos[0], plan, fed.identities[fed.silos[0]])
    roster = sign_roster(make_roster(plan, fed.roster.members), key)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        with new_ledger(path) as ledger:
            spend(ledger, 1)
        history = path.read_bytes()
    genuine = RoundRecord(
        federation_id=plan.federation_id,
        plan_digest=_HEX64,
        roster_digest=_HEX64,
        round=1,
        attempt=1,
        manifest_digest=_HEX64,
        cohort=fed.silos,
        survivors=fed.silos,
        previous_record=_HEX64,
        transcript_digest=_HEX64,
        certificate=RecordedCertificate(
            key_list_digest=_HEX64,
            share_set=fed.silos,
            uploads=dict.fromkeys(fed.silos, _HEX64),
            signatures={},
        ),
        aggregate_digest=_HEX64,
        saturated=0,
        cache_before=_HEX64,
        cache_after=_HEX64,
        ledger_heads=dict.fromkeys(fed.silos, _HEX64),
    )
    bodies = [msgspec.json.encode(value, order="sorted") for value in (genuine, open_roster(roster, plan))]
    tables = [write_invite(plan, key), ask, roster, sign_record(genuine, key), *bodies]
    return [*tables, cache_to_bytes(cache_of(2, 1, 4)), history, _change(fed, key)]


def _change(fed: Federation, key: SigningKey) -> bytes:
    """One more silo, approved by all."""
    plan, guest = a_plan(), messages.Member(SiloId("guest"), fixed_public_key("guest"))
    first = make_roster(plan, fed.roster.members)
    members = (*fed.roster.members, guest)
    second = make_roster(plan, members, epoch=2, previous=messages.roster_digest(first))
    approvals = tuple(approve(second, silo, fed.identities[silo]) for silo in fed.silos)
    return change_to_bytes(RosterChange(sign_roster(second, key), (), approvals))


def fixed_public_key(name: str) -> PublicKeyHex:
    return SigningKey(fixed(name)).public_key


def _unmasking(fed: Federation, updates: dict[SiloId, object]) -> list[bytes]:
    saved: list[bytes] = []
    coordinator = fed.coordinator()
    genuine = coordinator.on_unmask_shares

    def listening(answers: object) -> object:
        saved.append(unmasking_to_bytes(coordinator.unmasking))
        return genuine(answers)  # type: ignore[arg-type]

    coordinator.on_unmask_shares = listening  # type: ignore[method-assign, assignment]
    run_round(fed, updates, coordinator=coordinator)  # type: ignore[arg-type]
    return saved


@cache
def valid() -> dict[str, list[bytes]]:
    """Parser -> the seeds that it takes."""
    every = seeds()
    return {name: [seed for seed in every if parse(name, seed)] for name in parsers()}


def one_input(data: bytes) -> None:
    """The whole of it for a fuzzer that knows bytes only."""
    if not data:
        return
    names = sorted(parsers())
    choice, rest = data[0], data[1:]
    if choice < 32:
        drive_session(rest)
    elif choice < 64:
        drive_coordinator(rest)
    elif choice < 128:
        parse(names[choice % len(names)], rest)
    else:
        pool = valid()[names[choice % len(names)]]
        parse(names[choice % len(names)], mutate(pool[(rest[0] if rest else 0) % len(pool)], rest[1:]))

"""Who may take part is everybody's to know: a roster counts once all that are in it have signed it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import BadSignature, ConfigError, PeerError, RoundAborted
from cachefl_secure.federation import letters
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.countersigning import (
    COUNTERSIGNATURES_FILE,
    check_all_countersigned,
    check_countersignature,
    countersign,
    keep_countersignatures,
    kept_countersignatures,
)
from cachefl_secure.federation.enrolment import read_roster, sign_roster
from cachefl_secure.federation.inspection import audit_coordinator, audit_silo
from cachefl_secure.federation.letters import Countersignature, Hello, Reply, Sync
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.names import SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.messages import Member, Roster
from cachefl_secure.transport.local_federation import run_local_rounds
from tests.small_federation import SmallFederation, found


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    return found(tmp_path, records=(12, 20, 9, 15))


def run(federation: SmallFederation, *left_out: str) -> list[str]:
    said: list[str] = []
    present = [path for silo, path in federation.silos.items() if silo not in left_out]
    run_local_rounds(
        federation.coordinator, present, 1, deadline_seconds=60.0, progress=silent, tell=said.append
    )
    return said


def roster_of(federation: SmallFederation) -> Roster:
    return read_roster(CoordinatorFiles.open(federation.coordinator).state, federation.plan)


def key_of(path: Path) -> SigningKey:
    return SiloFiles.open(path).state.signing_key()


@pytest.mark.claim("C16")
def test_no_silo_trains_before_every_silo_has_countersigned_the_roster(federation: SmallFederation) -> None:
    with pytest.raises(RoundAborted):
        run(federation, "silo-4")
    for path in federation.silos.values():
        assert not (path / COUNTERSIGNATURES_FILE).exists()
        with SiloFiles.open(path).ledger() as ledger:
            assert not ledger.spends
    run(federation)
    for silo, path in federation.silos.items():
        held = kept_countersignatures(SiloFiles.open(path).state, roster_of(federation))
        assert set(held) == set(federation.silos), silo
    run(federation, "silo-4")  # from now on a silo may be away


@pytest.mark.claim("C16")
def test_two_silos_that_were_given_different_rosters_never_hold_all_countersignatures(
    federation: SmallFederation,
) -> None:
    """The coordinator slips a key of its own under silo-4's name to silo-1. It can sign for that key itself."""
    told, plan = roster_of(federation), federation.plan
    own = SigningKey.generate()
    members = tuple(
        Member(member.silo, own.public_key) if member.silo == "silo-4" else member for member in told.members
    )
    forged = msgspec.structs.replace(told, members=members)
    others = {silo: countersign(told, silo, key_of(path)) for silo, path in federation.silos.items()}
    deceived = SiloFiles.open(federation.silos[SiloId("silo-1")])
    with deceived.ledger() as ledger:
        service = SiloService(deceived, ledger)
        raw = sign_roster(forged, CoordinatorFiles.open(federation.coordinator).state.signing_key())
        cache = (federation.coordinator / "models/0000.safetensors").read_bytes()

        def say(phase: str, letter: Hello | Sync) -> Reply:
            reply = service.handle(phase, wire.encode(letter))
            return wire.decode(reply, Reply, limit_bytes=1 << 16, peer="silo-1")

        assert say(letters.HELLO, Hello(plan_digest(plan))).declined is None
        receipt = msgspec.msgpack.decode(say(letters.SYNC, Sync(raw, cache, ())).answer, type=letters.Receipt)
        assert receipt.countersignature is not None
        with pytest.raises(BadSignature):
            check_countersignature(receipt.countersignature, told)  # of no use to the others
        collected = others | {
            SiloId("silo-1"): receipt.countersignature,
            SiloId("silo-4"): countersign(forged, SiloId("silo-4"), own),
        }
        refused = say(letters.SYNC, Sync(b"", b"", (), tuple(collected.values())))
        assert refused.declined == "protocol-error"  # silo-2 and silo-3 signed another roster
    with pytest.raises(BadSignature):
        check_all_countersigned(collected, told)


@pytest.mark.claim("C16")
def test_a_missing_or_a_strangers_countersignature_is_refused(federation: SmallFederation) -> None:
    roster = roster_of(federation)
    good = {silo: countersign(roster, silo, key_of(path)) for silo, path in federation.silos.items()}
    check_all_countersigned(good, roster)
    missing = {silo: signed for silo, signed in good.items() if silo != "silo-3"}
    with pytest.raises(PeerError, match="no countersignature of the roster by 1 silo: silo-3"):
        check_all_countersigned(missing, roster)
    swapped = good | {SiloId("silo-3"): Countersignature(SiloId("silo-3"), good[SiloId("silo-2")].signature)}
    with pytest.raises(BadSignature):
        check_all_countersigned(swapped, roster)
    with pytest.raises(BadSignature, match="lacks it"):
        check_countersignature(Countersignature(SiloId("stranger"), bytes(64)), roster)
    newer = msgspec.structs.replace(roster, epoch=2)
    with pytest.raises(BadSignature):
        check_all_countersigned(good, newer)


@pytest.mark.claim("C16")
def test_audit_counts_countersignatures_and_refuses_damaged_ones(federation: SmallFederation) -> None:
    run(federation)
    silo = federation.silos[SiloId("silo-2")]
    for audit in (audit_coordinator(federation.coordinator), audit_silo(silo, {})):
        assert any("4 of 4 silos have countersigned the roster" in step.finding for step in audit.steps)
    files, roster = SiloFiles.open(silo), roster_of(federation)
    held = kept_countersignatures(files.state, roster)
    broken = replace_signature(held[SiloId("silo-1")])
    keep_countersignatures(files.state, held | {SiloId("silo-1"): broken})
    with pytest.raises(ConfigError, match="not the roster's signatures"):
        audit_silo(silo, {})


def replace_signature(signed: Countersignature) -> Countersignature:
    return msgspec.structs.replace(signed, signature=bytes(64))

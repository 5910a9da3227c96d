"""Signed round records: each numbered step of their verification refuses what it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import ConfigError, RecordRejected, SurvivorSetRejected
from cachefl_secure.federation.certified import check_against_signed, note_certified, signed_statement
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.enrolment import open_roster
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.record import (
    Participation,
    RecordedCertificate,
    RoundRecord,
    certified_statement,
    open_record,
    sign_record,
)
from cachefl_secure.federation.roster_change import RosterHistory
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import Digest, SiloId
from cachefl_secure.transport.local_federation import run_local_rounds
from tests.small_federation import SmallFederation, found

SILO = SiloId("silo-1")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallFederation, bytes, bytes]:
    """A federation after one round, that round's record and its sum."""
    federation = found(tmp_path_factory.mktemp("records"))
    silos = list(federation.silos.values())
    run_local_rounds(
        federation.coordinator, silos, 1, deadline_seconds=60.0, progress=silent, tell=lambda _: None
    )
    folder = federation.coordinator / "rounds/0001"
    return federation, (folder / "record.json").read_bytes(), (folder / "aggregate.bin").read_bytes()


def fresh_chain(federation: SmallFederation, tmp_path: Path) -> Chain:
    """A silo's chain as it was before the round."""
    files = SiloFiles.open(federation.silos[SILO])
    roster = open_roster(files.state.read("roster.bin"), files.plan)
    state = type(files.state)(tmp_path)
    state.write("models/0000.safetensors", files.state.read("models/0000.safetensors"))
    return Chain(state, files.plan, RosterHistory.first(files.plan, roster))


def resigned(federation: SmallFederation, raw: bytes, **changes: Any) -> bytes:
    """What a lying coordinator would publish: the record changed and signed with the genuine key."""
    files = CoordinatorFiles.open(federation.coordinator)
    record, _ = open_record(raw, files.plan)
    return sign_record(msgspec.structs.replace(record, **changes), files.state.signing_key())


@pytest.mark.claim("C20")
def test_the_genuine_record_is_accepted_once_and_again(
    played: tuple[SmallFederation, bytes, bytes], tmp_path: Path
) -> None:
    federation, raw, aggregate = played
    chain = fresh_chain(federation, tmp_path)
    first = chain.extend(raw, aggregate, None)
    assert chain.extend(raw, aggregate, None) == first
    assert len(chain.verified) == 1


@pytest.mark.claim("C20")
@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (2, {"federation_id": "f" * 32}),
        (2, {"plan_digest": "f" * 64}),
        (2, {"roster_digest": "f" * 64}),
        (3, {"previous_record": "f" * 64}),
        (3, {"cache_before": "f" * 64}),
        (4, {"cohort": ("silo-1", "silo-2", "silo-3", "silo-9")}),
        (4, {"cohort": ("silo-1", "silo-2")}),
        (4, {"survivors": ("silo-1", "silo-2", "silo-3", "silo-4", "silo-4")}),
        (4, {"survivors": ("silo-1",), "ledger_heads": {"silo-1": "f" * 64}}),
        (4, {"ledger_heads": {"silo-1": "f" * 64}}),
        (5, {"aggregate_digest": "f" * 64}),
        (5, {"saturated": 3}),
        (6, {"cache_after": "f" * 64}),
        (8, {"manifest_digest": "f" * 64}),
        (8, {"attempt": 2}),
    ],
)
def test_a_record_with_a_lie_in_it_is_refused_at_its_step(
    played: tuple[SmallFederation, bytes, bytes], tmp_path: Path, step: int, changes: dict[str, Any]
) -> None:
    federation, raw, aggregate = played
    chain = fresh_chain(federation, tmp_path)
    with pytest.raises(RecordRejected) as refused:
        chain.extend(resigned(federation, raw, **changes), aggregate, None)
    assert refused.value.step == step
    assert chain.position.round == 0
    assert not (tmp_path / "rounds").exists()


@pytest.mark.claim("C20")
def test_a_sum_other_than_the_one_named_is_refused(
    played: tuple[SmallFederation, bytes, bytes], tmp_path: Path
) -> None:
    federation, raw, aggregate = played
    with pytest.raises(RecordRejected, match="step 5"):
        fresh_chain(federation, tmp_path).extend(raw, aggregate[:-1] + b"\x01", None)


@pytest.mark.claim("C20")
def test_a_record_signed_by_somebody_else_is_refused(
    played: tuple[SmallFederation, bytes, bytes], tmp_path: Path
) -> None:
    federation, raw, aggregate = played
    record, _ = open_record(raw, federation.plan)
    forged = sign_record(record, SigningKey.generate())
    with pytest.raises(RecordRejected, match="step 1"):
        fresh_chain(federation, tmp_path).extend(forged, aggregate, None)


@pytest.mark.parametrize("junk", [b"", b"{}", b"\xff\xfe", b"[" * 5000, b'{"record": 1, "signature": 2}'])
def test_junk_is_no_record(played: tuple[SmallFederation, bytes, bytes], junk: bytes) -> None:
    with pytest.raises(RecordRejected, match="step 1"):
        open_record(junk, played[0].plan)


@pytest.mark.claim("C20")
@pytest.mark.parametrize(
    "changes",
    [
        {"manifest_digest": "e" * 64},
        {"survivors": ("silo-1", "silo-2", "silo-3", "silo-4")},
        {"head": "e" * 64},
    ],
)
def test_a_record_that_contradicts_what_the_silo_saw_is_refused(
    played: tuple[SmallFederation, bytes, bytes], tmp_path: Path, changes: dict[str, Any]
) -> None:
    federation, raw, aggregate = played
    record, _ = open_record(raw, federation.plan)
    seen = Participation(
        silo=SILO,
        round=record.round,
        attempt=record.attempt,
        manifest_digest=Digest(changes.get("manifest_digest", record.manifest_digest)),
        survivors=tuple(map(SiloId, changes.get("survivors", record.survivors))),
        ledger_head=Digest(changes.get("head", record.ledger_heads[SILO])),
    )
    with pytest.raises(RecordRejected, match="step 7"):
        fresh_chain(federation, tmp_path).extend(raw, aggregate, seen)


def _without_one_signature(certificate: RecordedCertificate) -> dict[str, Any]:
    """Five silos, one colluder: a quorum is four."""
    return {"signatures": dict(sorted(certificate.signatures.items())[:3])}


def _with_a_signature_moved(certificate: RecordedCertificate) -> dict[str, Any]:
    first, second, *_ = sorted(certificate.signatures)
    return {"signatures": certificate.signatures | {first: certificate.signatures[second]}}


def _with_the_coordinator_as_signer(certificate: RecordedCertificate) -> dict[str, Any]:
    return {"signatures": certificate.signatures | {"coordinator": certificate.signatures[SILO]}}


def _with_another_upload(certificate: RecordedCertificate) -> dict[str, Any]:
    return {"uploads": certificate.uploads | {SILO: "f" * 64}}


def _without_an_upload(certificate: RecordedCertificate) -> dict[str, Any]:
    return {"uploads": {s: d for s, d in certificate.uploads.items() if s != SILO}}


def _with_another_key_list(certificate: RecordedCertificate) -> dict[str, Any]:
    return {"key_list_digest": "f" * 64}


def _with_a_stranger_who_shared(certificate: RecordedCertificate) -> dict[str, Any]:
    return {"share_set": (*certificate.share_set, "silo-9")}


@pytest.mark.claim("C4")
@pytest.mark.claim("C20")
@pytest.mark.parametrize(
    "lie",
    [
        _without_one_signature,
        _with_a_signature_moved,
        _with_the_coordinator_as_signer,
        _with_another_upload,
        _without_an_upload,
        _with_another_key_list,
        _with_a_stranger_who_shared,
    ],
)
def test_a_record_without_a_whole_certificate_is_refused(
    played: tuple[SmallFederation, bytes, bytes],
    tmp_path: Path,
    lie: Callable[[RecordedCertificate], dict[str, Any]],
) -> None:
    federation, raw, aggregate = played
    genuine = open_record(raw, federation.plan)[0].certificate
    forged = resigned(federation, raw, certificate=msgspec.structs.replace(genuine, **lie(genuine)))
    with pytest.raises(RecordRejected, match="step 8"):
        fresh_chain(federation, tmp_path).extend(forged, aggregate, None)


@pytest.mark.claim("C4")
def test_a_record_of_another_statement_than_the_silo_signed_is_refused_from_disk(
    played: tuple[SmallFederation, bytes, bytes], tmp_path: Path
) -> None:
    federation, raw, _ = played
    record, _ = open_record(raw, federation.plan)
    kept = SiloFiles.open(federation.silos[SILO]).state
    assert signed_statement(kept, 1) == (record.attempt, certified_statement(record))
    check_against_signed(kept, record)
    state = StateDir(tmp_path)
    note_certified(state, 1, record.attempt, Digest("e" * 64))
    with pytest.raises(RecordRejected, match="step 7"):
        check_against_signed(state, record)


@pytest.mark.claim("C4")
def test_one_statement_is_noted_per_attempt_and_none_of_an_earlier_one(tmp_path: Path) -> None:
    state, one, other = StateDir(tmp_path), Digest("1" * 64), Digest("2" * 64)
    note_certified(state, 7, 2, one)
    note_certified(state, 7, 2, one)
    for attempt in (1, 2):
        with pytest.raises(SurvivorSetRejected):
            note_certified(state, 7, attempt, other)
    assert signed_statement(state, 7) == (2, one)
    note_certified(state, 7, 3, other)
    assert signed_statement(state, 7) == (3, other)
    state.write("rounds/0007/certified", b"junk")
    with pytest.raises(ConfigError):
        note_certified(state, 7, 4, one)


def test_a_record_is_readable_json(played: tuple[SmallFederation, bytes, bytes]) -> None:
    outer = msgspec.json.decode(played[1])
    assert msgspec.json.decode(outer["record"], type=RoundRecord).round == 1

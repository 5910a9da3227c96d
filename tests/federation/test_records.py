"""Signed round records: each numbered step of their verification refuses what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import RecordRejected
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.enrolment import open_roster
from cachefl_secure.federation.joining import SiloFiles
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.record import Participation, RoundRecord, open_record, sign_record
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
    return Chain(state, files.plan, roster)


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


def test_a_record_is_readable_json(played: tuple[SmallFederation, bytes, bytes]) -> None:
    outer = msgspec.json.decode(played[1])
    assert msgspec.json.decode(outer["record"], type=RoundRecord).round == 1

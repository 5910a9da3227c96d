"""A coordinator that accuses an honest silo of a rolled-back ledger: what proves it, and what does not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import LedgerRolledBack, RecordRejected
from cachefl_secure.federation import letters
from cachefl_secure.federation.coordinator_round import CoordinatorService
from cachefl_secure.federation.inspection import audit_coordinator, audit_silo, open_chain
from cachefl_secure.federation.letters import Hello, Receipt
from cachefl_secure.federation.record import sign_record
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.witnesses import is_silo, witnessed_heads
from cachefl_secure.names import SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.protocol import wire
from tests.driven import Driven, driven, run
from tests.small_federation import found


def receipt_of(services: Driven, silo: SiloId) -> Receipt:
    name = letters.RECEIPTS_FILE
    return letters.read_receipts(services.files.state.read(name), file=name)[silo][-1]


def signed_by(key: SigningKey, receipt: Receipt) -> Receipt:
    signature = key.sign(letters.RECEIPT_PURPOSE, letters.receipt_bytes(receipt))
    return msgspec.structs.replace(receipt, signature=signature)


@pytest.mark.claim("C10")
def test_a_greeting_accuses_nobody_unless_it_holds_the_silos_own_signature(tmp_path: Path) -> None:
    with driven(found(tmp_path)) as services:
        silo, plan = services.silos[1], plan_digest(services.federation.plan)
        genuine = receipt_of(services, silo)
        other = msgspec.structs.replace(genuine, ledger_head="c" * 64)
        made_up = [
            other,
            signed_by(services.key, other),
            signed_by(SigningKey.generate(), other),
            receipt_of(services, services.silos[0]),
        ]
        for receipt in (None, genuine, *made_up):
            assert isinstance(services.ask(silo, letters.HELLO, wire.encode(Hello(plan, receipt))), bytes)
            assert services.services[silo].take_trouble() is None


@pytest.mark.claim("C10")
def test_a_receipt_that_the_silo_did_sign_for_a_head_it_lacks_stops_it(tmp_path: Path) -> None:
    """As after a rollback: only its own key can have made this."""
    with driven(found(tmp_path)) as services:
        silo, plan = services.silos[1], plan_digest(services.federation.plan)
        own = services.services[silo]._identity
        later = signed_by(own, msgspec.structs.replace(receipt_of(services, silo), ledger_head="c" * 64))
        assert services.ask(silo, letters.HELLO, wire.encode(Hello(plan, later))) == "ledger-rolled-back"
        trouble = services.services[silo].take_trouble()
        assert isinstance(trouble, LedgerRolledBack)
        assert "a receipt that this silo signed" in str(trouble)


def test_a_head_in_a_record_is_the_coordinators_word_and_the_alarm_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack of limit N20: an honest silo is accused. It is not proved guilty, and its receipts clear it."""
    federation = found(tmp_path)
    run(federation)
    genuine = CoordinatorService._publish

    def lie(self: CoordinatorService, *arguments: Any) -> Any:
        record, _, content = genuine(self, *arguments)
        record = msgspec.structs.replace(record, ledger_heads={**record.ledger_heads, "silo-3": "ab" * 32})
        return record, sign_record(record, self._identity), content

    with monkeypatch.context() as patch:
        patch.setattr(CoordinatorService, "_publish", lie)
        run(federation)
    said: list[str] = []
    run(federation, said=said)
    (line,) = {line for line in said if line.startswith("silo-3: ledger-rolled-back")}
    assert "a record that the coordinator signed, or it lies" in line
    roots = [federation.coordinator, *federation.silos.values()]
    with pytest.raises(LedgerRolledBack, match="a receipt of its owner or a record"):
        audit_silo(federation.silos[SiloId("silo-3")], witnessed_heads(roots))


@pytest.mark.claim("C16")
def test_an_audit_does_not_hold_where_rounds_were_run_and_countersignatures_are_missing(
    tmp_path: Path,
) -> None:
    federation = found(tmp_path)
    run(federation)
    for root in (federation.coordinator, federation.silos[SiloId("silo-2")]):
        audit = partial(audit_silo, witnessed={}) if is_silo(root) else audit_coordinator
        file = root / "countersignatures.bin"
        kept = file.read_bytes()
        audit(root)
        few = msgspec.msgpack.decode(kept)[:-1]
        for content in (msgspec.msgpack.encode(few), None):
            file.unlink() if content is None else file.write_bytes(content)
            with pytest.raises(RecordRejected, match=r"rounds were run, but here only [04] of 5") as refused:
                audit(root)
            assert refused.value.step == 2
        file.write_bytes(kept)


@pytest.mark.claim("C16")
def test_a_silo_that_was_away_when_countersignatures_were_handed_out_took_part_in_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others hold them all, its own included, and run a round without it. Its audit says: not yet."""
    federation, syncs = found(tmp_path), list[str]()
    genuine = SiloService.handle

    def handle(self: SiloService, phase: str, content: bytes) -> bytes:
        if self.silo == "silo-5" and phase == letters.SYNC:
            syncs.append(phase)
        if self.silo == "silo-5" and len(syncs) > 1:
            raise RuntimeError("away")
        return genuine(self, phase, content)

    monkeypatch.setattr(SiloService, "handle", handle)
    run(federation)
    assert not (federation.silos[SiloId("silo-5")] / "countersignatures.bin").exists()
    audit = audit_silo(federation.silos[SiloId("silo-5")], {})
    assert any("0 of 5" in step.finding and "not all yet" in step.finding for step in audit.steps)
    assert all("silo-5" not in held for held in _survivors(federation.coordinator))


def _survivors(root: Path) -> list[tuple[str, ...]]:
    return [held.record.survivors for held in open_chain(root).verified]

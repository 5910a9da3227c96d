"""Rounds between parties that each have a directory of their own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cachefl_secure.cache.model import cache_digest
from cachefl_secure.errors import (
    CohortExhausted,
    ConfigError,
    LedgerRolledBack,
    LocalProtocolError,
    RecordRejected,
    RoundAborted,
)
from cachefl_secure.federation import letters
from cachefl_secure.federation.budget import silo_budget
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import RoundOutcome
from cachefl_secure.federation.inspection import audit_silo, open_chain, status
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.sealed_update import SealedUpdate
from cachefl_secure.federation.silo_attempt import OPACUS
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.federation.witnesses import witnessed_heads
from cachefl_secure.names import SiloId
from cachefl_secure.privacy import device_trial, training
from cachefl_secure.privacy.accounting import cost_of
from cachefl_secure.privacy.device_trial import check_device
from cachefl_secure.privacy.mechanism import mechanism_of
from cachefl_secure.protocol import parameters as parameters_module
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.graph import Ring
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate
from cachefl_secure.transport.local_federation import run_local_rounds
from cachefl_secure.updates import PrivateUpdate
from tests.small_federation import SmallFederation, all_entries, found, small_privacy

Handle = Callable[[SiloService, str, bytes], bytes]


@pytest.fixture(params=["local", "distributed"])
def federation(tmp_path: Path, request: pytest.FixtureRequest) -> SmallFederation:
    choices = PrivacyChoices(mechanism=request.param, rounds=4, expected_records=15)
    return found(tmp_path, privacy=small_privacy(choices))


def run(
    federation: SmallFederation, number: int = 1, said: list[str] | None = None, *, give_up: bool = False
) -> list[RoundOutcome]:
    tell = (said if said is not None else []).append
    silos = list(federation.silos.values())
    return run_local_rounds(
        federation.coordinator,
        silos,
        number,
        deadline_seconds=60.0,
        progress=silent,
        tell=tell,
        give_up=give_up,
    )


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[EncodedUpdate]:
    """Every update that a silo encodes, in the clear, as only the silo sees it."""
    encoded: list[EncodedUpdate] = []

    genuine = SealedUpdate.encoding

    def recording(self: SealedUpdate, parameters: RoundParameters) -> EncodedUpdate:
        encoded.append(all_entries(genuine(self, parameters), parameters))
        return encoded[-1]

    monkeypatch.setattr(SealedUpdate, "encoding", recording)
    return encoded


def make_fail(monkeypatch: pytest.MonkeyPatch, phase: str, silos: set[str]) -> None:
    """These silos die when they are asked in this phase."""
    genuine: Handle = SiloService.handle

    def handle(self: SiloService, asked: str, content: bytes) -> bytes:
        if asked == phase and self.silo in silos:
            raise RuntimeError("the silo's machine lost power")
        return genuine(self, asked, content)

    monkeypatch.setattr(SiloService, "handle", handle)


@pytest.mark.claim("C2")
def test_the_aggregate_equals_the_integer_sum_bit_for_bit(
    federation: SmallFederation, sent: list[EncodedUpdate]
) -> None:
    (outcome,) = run(federation)
    parameters = RoundParameters.derive(federation.plan, 5, 5)
    content = (federation.coordinator / "rounds/0001/aggregate.bin").read_bytes()
    aggregate = AggregateSum.from_bytes(content, parameters)
    assert len(sent) == 5
    expected = np.sum([update.words for update in sent], axis=0, dtype=np.uint64)
    assert np.array_equal(aggregate.words, expected.astype(parameters.word))
    assert int(aggregate.counters[0]) == sum(int(update.counters[0]) for update in sent)
    assert len(outcome.record.survivors) == 5


def test_after_a_round_every_party_holds_the_same_cache(federation: SmallFederation) -> None:
    outcomes = run(federation, 2)
    for directory in (federation.coordinator, *federation.silos.values()):
        chain = open_chain(directory)
        assert cache_digest(chain.model()) == outcomes[-1].record.cache_after
        assert [verified.record.round for verified in chain.verified] == [1, 2]


def test_training_moves_the_cache(federation: SmallFederation) -> None:
    run(federation)
    chain = open_chain(federation.coordinator)
    assert not np.allclose(chain.initial_model().cache_keys, chain.model().cache_keys)


@pytest.mark.claim("C2")
@pytest.mark.parametrize("phase", [letters.SHARE, letters.MASKED_INPUT])
def test_a_silo_that_drops_after_key_exchange_is_left_out_of_an_exact_sum(
    federation: SmallFederation, sent: list[EncodedUpdate], monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    make_fail(monkeypatch, phase, {"silo-3"})
    said: list[str] = []
    (outcome,) = run(federation, said=said)
    assert set(outcome.record.survivors) == {"silo-1", "silo-2", "silo-4", "silo-5"}
    parameters = RoundParameters.derive(federation.plan, 5, 5)
    content = (federation.coordinator / "rounds/0001/aggregate.bin").read_bytes()
    expected = np.sum([update.words for update in sent], axis=0, dtype=np.uint64).astype(parameters.word)
    assert np.array_equal(AggregateSum.from_bytes(content, parameters).words, expected)
    assert len(sent) == 4
    assert said == ["silo-3: no answer (RuntimeError)"]


def test_a_silo_that_missed_a_round_is_brought_up_to_date(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(federation)
    with monkeypatch.context() as patch:
        make_fail(patch, letters.SYNC, {"silo-2"})
        (outcome,) = run(federation)
        assert set(outcome.record.cohort) == {"silo-1", "silo-3", "silo-4", "silo-5"}
    (outcome,) = run(federation)
    assert "silo-2" in outcome.record.survivors
    assert open_chain(federation.silos[SiloId("silo-2")]).position.round == 3
    assert silo_budget(federation.silos[SiloId("silo-2")]).rounds_charged == 2


def test_below_the_threshold_the_round_aborts_and_a_retry_sends_the_same_update_uncharged(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with monkeypatch.context() as patch:
        make_fail(patch, letters.MASKED_INPUT, {"silo-1", "silo-2"})
        with pytest.raises(RoundAborted):
            run(federation, said=said)
    assert open_chain(federation.coordinator).position.round == 0
    sealed = {s: (p / "rounds/0001/update.sealed") for s, p in federation.silos.items()}
    before = {silo: path.read_bytes() for silo, path in sealed.items() if path.exists()}
    assert set(before) == {"silo-3", "silo-4", "silo-5"}
    digests = {silo: _update_digest(federation.silos[SiloId(silo)]) for silo in before}
    (outcome,) = run(federation)
    assert (outcome.record.round, outcome.record.attempt) == (1, 2)
    for silo, path in federation.silos.items():
        assert silo_budget(path).rounds_charged == 1
        if silo in digests:
            assert _update_digest(path) == digests[silo]


def _update_digest(directory: Path) -> str | None:
    from cachefl_secure.federation.silo_files import SiloFiles

    with SiloFiles.open(directory).ledger() as ledger:
        return ledger.spends[-1].update_digest


@pytest.mark.claim("C3")
def test_an_update_that_was_opened_once_never_enters_another_sum(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few silos answered the unmask request, and two have lost their sessions: the round's number is given up."""
    with monkeypatch.context() as patch:
        make_fail(patch, letters.UNMASK, {"silo-1", "silo-2"})
        with pytest.raises(RoundAborted):
            run(federation)
    for silo in ("silo-1", "silo-2"):
        (federation.silos[SiloId(silo)] / "rounds/0001/session").unlink()
    with pytest.raises(RoundAborted):
        run(federation)
    assert (federation.coordinator / "rounds/0001/given-up").exists()
    (outcome,) = run(federation)
    assert outcome.record.round == 2
    assert silo_budget(federation.silos[SiloId("silo-3")]).rounds_charged == 2


def test_a_round_that_lacked_answers_after_its_certificate_is_finished_later_at_no_cost(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        make_fail(patch, letters.UNMASK, {"silo-1", "silo-2"})
        with pytest.raises(RoundAborted):
            run(federation)
    (outcome,) = run(federation)
    assert (outcome.record.round, outcome.record.attempt) == (1, 1)
    assert len(outcome.record.survivors) == 5
    assert not (federation.coordinator / "rounds/0001/unmasking").exists()
    for directory in federation.silos.values():
        assert silo_budget(directory).rounds_charged == 1
        assert not (directory / "rounds/0001/session").exists()


def test_an_operator_may_give_up_a_round_whose_silos_will_not_come_back(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        make_fail(patch, letters.UNMASK, {"silo-1", "silo-2"})
        for _ in range(2):
            with pytest.raises(RoundAborted):
                run(federation)
    said: list[str] = []
    (outcome,) = run(federation, said=said, give_up=True)
    assert outcome.record.round == 2
    assert said[0] == "round 1 is given up; what it cost stays charged"


def test_a_silo_that_answered_an_unmask_request_declines_the_same_round_again(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        make_fail(patch, letters.UNMASK, {"silo-1", "silo-2"})
        with pytest.raises(RoundAborted):
            run(federation)
    (federation.coordinator / "rounds/0001/unmasking").unlink()  # a coordinator that lies to itself
    said: list[str] = []
    with pytest.raises(RoundAborted):
        run(federation, said=said)
    declined = [line for line in said if "update-already-released" in line]
    assert len(declined) == 3


@pytest.mark.claim("C4")
def test_without_a_quorum_nothing_is_released_and_the_round_is_tried_again_uncharged(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        make_fail(patch, letters.CERTIFICATE, {"silo-1", "silo-2"})
        with pytest.raises(RoundAborted):
            run(federation)
    assert not (federation.coordinator / "rounds/0001/unmasking").exists()
    for directory in federation.silos.values():
        assert not (directory / "rounds/0001/released").exists()
    (outcome,) = run(federation)
    assert (outcome.record.round, outcome.record.attempt) == (1, 2)
    for directory in federation.silos.values():
        assert silo_budget(directory).rounds_charged == 1


@pytest.mark.claim("C4")
def test_on_a_ring_a_round_that_failed_after_statements_were_signed_is_given_up(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thresholds of neighbourhoods do not meet across attempts; what keeps a second sum away is one signature an update."""
    monkeypatch.setattr(parameters_module, "_ring", lambda plan, n: Ring(2, 2, 1, 0))
    with monkeypatch.context() as patch:
        make_fail(patch, letters.CERTIFICATE, {"silo-1", "silo-2"})
        with pytest.raises(RoundAborted):
            run(federation)
    signed = {silo for silo, path in federation.silos.items() if (path / "rounds/0001/released").exists()}
    assert signed == {"silo-3", "silo-4", "silo-5"}
    (outcome,) = run(federation)
    assert (outcome.record.round, outcome.record.attempt) == (2, 1)
    assert [silo_budget(path).rounds_charged for path in federation.silos.values()] == [2] * 5


@pytest.mark.claim("C4")
def test_a_silo_that_does_not_sign_is_in_the_sum_and_not_asked_for_shares(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fail(monkeypatch, letters.CERTIFICATE, {"silo-1"})
    (outcome,) = run(federation)
    assert len(outcome.record.survivors) == 5
    assert set(outcome.record.certificate.signatures) == {"silo-2", "silo-3", "silo-4", "silo-5"}
    assert not (federation.silos[SiloId("silo-1")] / "rounds/0001/released").exists()
    assert open_chain(federation.silos[SiloId("silo-1")]).position.round == 1


@pytest.mark.claim("C4")
def test_the_statement_is_on_disk_before_the_signature_leaves(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silo whose disk refuses the statement does not sign; asked again, it has nothing saved that could leave."""
    genuine_write, genuine_handle, full = StateDir.write, SiloService.handle, [True]

    def write(self: StateDir, relative: str, content: bytes, *, private: bool = False) -> None:
        if relative.endswith("/certified") and self.root.name == "silo-1" and full[0]:
            raise ConfigError(relative, "", "disk full")
        genuine_write(self, relative, content, private=private)

    asked: list[tuple[bytes, bytes]] = []

    def handle(self: SiloService, phase: str, content: bytes) -> bytes:
        if phase == letters.CERTIFICATE and self.silo == "silo-1":
            asked.append((genuine_handle(self, phase, content), genuine_handle(self, phase, content)))
            full[0] = False
        return genuine_handle(self, phase, content)

    monkeypatch.setattr(StateDir, "write", write)
    monkeypatch.setattr(SiloService, "handle", handle)
    (outcome,) = run(federation)
    refused = wire.encode(letters.Reply(b"", "storage-failed"))
    assert asked == [(refused, refused)]
    # Once the disk is well again, the same statement.
    assert set(outcome.record.certificate.signatures) == {"silo-1", "silo-2", "silo-3", "silo-4"}


@pytest.mark.claim("C4")
def test_a_restarted_silo_signs_no_second_survivor_set_of_the_attempt(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if the number of the attempt is lost: the statement on disk has it too."""
    directory, said = federation.silos[SiloId("silo-1")], []
    genuine: Handle = SiloService.handle
    manifests: list[bytes] = []

    def handle(self: SiloService, phase: str, content: bytes) -> bytes:
        if self.silo == "silo-1" and phase == letters.MANIFEST:
            manifests.append(content)
        if self.silo == "silo-1" and phase == letters.UNMASK:
            (directory / "rounds/0001/attempt").unlink()
            restarted = SiloService(self._files, self._ledger)
            for asked, request in ((letters.MANIFEST, manifests[-1]), (letters.UNMASK, content)):
                reply = wire.decode(
                    genuine(restarted, asked, request), letters.Reply, limit_bytes=9999, peer="x"
                )
                said.append(reply.declined)
        return genuine(self, phase, content)

    monkeypatch.setattr(SiloService, "handle", handle)
    run(federation)
    assert said == ["stale-round", "stale-round"]


@pytest.mark.claim("C4")
def test_a_coordinator_that_asks_for_shares_without_a_certificate_gets_none(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends the proposal where the certificate belongs, before and after the silo has signed."""
    genuine: Handle = SiloService.handle
    answers: list[bytes] = []

    def handle(self: SiloService, phase: str, content: bytes) -> bytes:
        if phase == letters.CERTIFICATE:
            answers.append(genuine(self, letters.UNMASK, content))
            reply = genuine(self, phase, content)
            answers.append(genuine(self, letters.UNMASK, content))
            return reply
        return genuine(self, phase, content)

    monkeypatch.setattr(SiloService, "handle", handle)
    run(federation)
    assert answers == [wire.encode(letters.Reply(b"", "protocol-error"))] * 10


@pytest.mark.claim("C11")
def test_a_silo_declines_before_training_when_its_cap_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = found(tmp_path, epsilon_cap=5.5)  # the plan's four rounds cost 8
    run(federation, 2)
    ledgers = [(path / "ledger/ledger.jsonl").read_bytes() for path in federation.silos.values()]

    def never(*_: object, **__: object) -> PrivateUpdate:
        raise AssertionError("trained beyond the cap")

    monkeypatch.setattr(training, "train_privately", never)
    said: list[str] = []
    with pytest.raises(CohortExhausted):
        run(federation, said=said)
    assert all("budget-exhausted" in line for line in said)
    assert len(said) == 5
    assert ledgers == [(path / "ledger/ledger.jsonl").read_bytes() for path in federation.silos.values()]


@pytest.mark.claim("C11")
def test_a_silo_that_has_run_out_leaves_the_cohort_and_the_federation_goes_on_to_the_planned_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = found(tmp_path)
    silo, others = SiloId("silo-2"), {f"silo-{index}" for index in (1, 3, 4, 5)}
    config = federation.silos[silo] / "silo.toml"
    text = config.read_text(encoding="utf-8")
    cap = cost_of([(mechanism_of(federation.plan), 2)], federation.plan.privacy.delta).local
    config.write_text(
        re.sub("epsilon_cap_local = .*", f"epsilon_cap_local = {cap!r}", text), encoding="utf-8"
    )
    asked: list[tuple[str, SiloId]] = []
    honest = SiloService.handle

    def watched(service: SiloService, phase: str, content: bytes) -> bytes:
        asked.append((phase, service.silo))
        return honest(service, phase, content)

    monkeypatch.setattr(SiloService, "handle", watched)
    said: list[str] = []
    outcomes = run(federation, 4, said)
    assert [set(outcome.record.cohort) - others for outcome in outcomes] == [{silo}, {silo}, set(), set()]
    assert [outcome.attendance.declined for outcome in outcomes[2:]] == [{silo: "budget-exhausted"}] * 2
    assert len(said) == 2  # and not again after the last round, when all are done
    assert all(line.startswith("silo-2: budget-exhausted (has spent ") for line in said)
    assert all(line.endswith(f"; the cap is epsilon_cap_local in {config})") for line in said)
    assert asked.count((letters.MANIFEST, silo)) == 2  # it was not even asked
    assert open_chain(federation.silos[silo]).position.round == 4  # and still gets every record
    assert silo_budget(federation.silos[silo]).rounds_charged == 2
    assert status(federation.silos[SiloId("silo-1")]).waiting_for == "nobody: all planned rounds are done"


@pytest.mark.claim("C11")
def test_a_silo_without_budget_may_still_finish_the_round_that_it_has_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap = cost_of([(mechanism_of(found(tmp_path / "model").plan), 1)], 1e-5).local
    federation = found(tmp_path / "real", epsilon_cap=cap)
    with monkeypatch.context() as patch:
        make_fail(patch, letters.CERTIFICATE, {"silo-1", "silo-2", "silo-3"})
        with pytest.raises(RoundAborted):
            run(federation)
    (outcome,) = run(federation)
    assert len(outcome.record.survivors) == 5
    assert {silo_budget(path).rounds_charged for path in federation.silos.values()} == {1}
    said: list[str] = []
    with pytest.raises(CohortExhausted):
        run(federation, said=said)
    assert len(said) == 5
    assert "caps allow no further round" in status(federation.silos[SiloId("silo-1")]).waiting_for


def test_a_directory_in_use_is_refused(federation: SmallFederation) -> None:
    with (
        CoordinatorFiles.open(federation.coordinator).state.lock(),
        pytest.raises(ConfigError, match="another cachefl-secure process"),
    ):
        run(federation)


def test_a_stranger_is_not_talked_to(federation: SmallFederation, tmp_path: Path) -> None:
    other = found(tmp_path / "other")
    strangers = list(other.silos.values())
    with pytest.raises(RoundAborted):
        run_local_rounds(
            federation.coordinator, strangers, 1, deadline_seconds=60.0, progress=silent, tell=lambda _: None
        )


def test_the_chain_recomputes_a_lost_model(federation: SmallFederation) -> None:
    outcomes = run(federation, 2)
    (federation.coordinator / "models/0002.safetensors").unlink()
    assert cache_digest(open_chain(federation.coordinator).model()) == outcomes[-1].record.cache_after


def test_a_record_that_was_changed_on_disk_is_found(federation: SmallFederation) -> None:
    run(federation)
    path = federation.silos[SiloId("silo-1")] / "rounds/0001/record.json"
    path.write_bytes(path.read_bytes().replace(b'saturated\\":0', b'saturated\\":1'))
    with pytest.raises(RecordRejected, match="step 1"):
        open_chain(federation.silos[SiloId("silo-1")])


def test_a_sum_that_was_changed_on_disk_is_found_by_recomputation(federation: SmallFederation) -> None:
    run(federation)
    path = federation.coordinator / "rounds/0001/aggregate.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(bytes(content))
    chain: Chain = open_chain(federation.coordinator)
    with pytest.raises(RecordRejected, match="step 5"):
        list(chain.models())


def test_every_request_delivered_twice_changes_nothing(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mailbox may deliver twice; the second answer is the first, and only one thing happened."""
    genuine: Handle = SiloService.handle

    def twice(self: SiloService, phase: str, content: bytes) -> bytes:
        first, second = genuine(self, phase, content), genuine(self, phase, content)
        if phase != letters.SYNC:  # its receipt names the ledger's head of the moment
            assert first == second
        return second

    monkeypatch.setattr(SiloService, "handle", twice)
    said: list[str] = []
    outcomes = run(federation, 2, said)
    assert said == []
    for silo, directory in federation.silos.items():
        assert (
            open_chain(directory).position.record_digest
            == open_chain(federation.coordinator).position.record_digest
        )
        ledger = (directory / "ledger/ledger.jsonl").read_bytes()
        assert (ledger.count(b'"kind":"sent"'), ledger.count(b'"kind":"spend"')) == (2, 2), silo
    assert len(outcomes) == 2


@pytest.mark.claim("C9")
def test_a_message_that_does_not_verify_is_not_charged_for(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine: Handle = SiloService.handle

    def garbled(self: SiloService, phase: str, content: bytes) -> bytes:
        if phase == letters.MASKED_INPUT:
            genuine(self, phase, content[:-1] + bytes([content[-1] ^ 1]))
            assert genuine(self, phase, b"garbage")
            assert not self._ledger.spends
        return genuine(self, phase, content)

    monkeypatch.setattr(SiloService, "handle", garbled)
    (outcome,) = run(federation)
    assert len(outcome.record.survivors) == 5


@pytest.mark.claim("C10")
@pytest.mark.claim("C11")
def test_a_ledger_rolled_back_behind_a_recorded_round_is_refused_by_round_and_budget(
    federation: SmallFederation,
) -> None:
    run(federation, 2)
    directory = federation.silos[SiloId("silo-1")]
    ledger = directory / "ledger/ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(LedgerRolledBack):
        run(federation)
    with pytest.raises(LedgerRolledBack):
        silo_budget(directory)
    assert open_chain(federation.coordinator).position.round == 2


def test_a_training_that_fails_is_a_reason_and_not_the_end_of_the_silo(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object, **__: object) -> PrivateUpdate:
        raise RuntimeError("secret tensor contents [0.123]")

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_privately", out_of_memory)
        said: list[str] = []
        with pytest.raises(RoundAborted):
            run(federation, said=said)
    assert said == [f"silo-{number}: internal-error (RuntimeError)" for number in range(1, 6)]
    (outcome,) = run(federation)  # the charge stands, and serves
    assert outcome.record.round == 1
    assert silo_budget(federation.silos[SiloId("silo-1")]).rounds_charged == 1


def test_a_missing_device_is_found_out_before_the_charge(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in federation.silos.values():
        config = directory / "silo.toml"
        config.write_text(config.read_text().replace('"cpu"', '"cuda"'))

    def missing(device: str) -> None:
        check_device(f"{device}:99")  # no machine has a hundred

    monkeypatch.setattr(device_trial, "check_device", missing)
    said: list[str] = []
    with pytest.raises(RoundAborted):
        run(federation, said=said)
    assert all("training_device" in line for line in said)
    assert silo_budget(federation.silos[SiloId("silo-1")]).rounds_charged == 0


def test_an_unfinished_ledger_line_is_repaired_and_told(federation: SmallFederation) -> None:
    ledger = federation.silos[SiloId("silo-1")] / "ledger/ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes() + b'{"body":{"attempt":1,')
    said: list[str] = []
    run(federation, said=said)
    assert len(said) == 1
    assert said[0].startswith("silo-1: ledger: entry 2 was not finished")


def test_the_printed_epsilon_counts_a_round_that_was_charged_and_given_up(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(federation)
    with monkeypatch.context() as patch:
        make_fail(patch, letters.UNMASK, {"silo-1", "silo-2"})
        with pytest.raises(RoundAborted):
            run(federation)
    (outcome,) = run(federation, give_up=True)
    spent = [silo_budget(path).spent for path in federation.silos.values()]
    assert outcome.record.round == 3
    assert outcome.cost.local == max(cost.local for cost in spent)
    assert outcome.cost.aggregate == max(cost.aggregate for cost in spent)


@pytest.mark.claim("C10")
def test_a_silo_restored_from_an_older_copy_of_its_directory_notices_at_the_next_record(
    federation: SmallFederation, tmp_path: Path
) -> None:
    directory, copy = federation.silos[SiloId("silo-1")], tmp_path / "backup"
    run(federation)
    shutil.copytree(directory, copy)
    run(federation)
    shutil.rmtree(directory)
    shutil.copytree(copy, directory)
    said: list[str] = []
    (outcome,) = run(federation, said=said)
    assert "silo-1" not in outcome.record.cohort
    assert any("silo-1: ledger-rolled-back" in line for line in said)
    assert silo_budget(directory).rounds_charged == 1  # nothing new was charged, and nothing sent


@pytest.mark.claim("C10")
def test_an_audit_with_the_coordinators_directory_finds_a_restored_silo(
    federation: SmallFederation, tmp_path: Path
) -> None:
    directory, copy = federation.silos[SiloId("silo-1")], tmp_path / "backup"
    run(federation)
    shutil.copytree(directory, copy)
    run(federation)
    assert audit_silo(directory, witnessed_heads([federation.coordinator, directory])).ledger is not None
    shutil.rmtree(directory)
    shutil.copytree(copy, directory)
    assert audit_silo(directory, {}).ledger is not None  # by itself it looks whole
    with pytest.raises(LedgerRolledBack):
        audit_silo(directory, witnessed_heads([federation.coordinator, directory]))


@pytest.mark.claim("C9")
def test_a_lost_update_that_may_have_left_is_not_trained_again_for_the_same_charge(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the ledger's own note that it left is torn off: the round's folder has another."""
    with monkeypatch.context() as patch:
        make_fail(patch, letters.MASKED_INPUT, {"silo-1", "silo-2"})
        with pytest.raises(RoundAborted):
            run(federation)
    directory = federation.silos[SiloId("silo-3")]
    (directory / "rounds/0001/update.sealed").unlink()
    ledger = directory / "ledger/ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert b'"kind":"sent"' in lines[-1]
    ledger.write_bytes(b"".join(lines[:-1]))
    said: list[str] = []
    (outcome,) = run(federation, said=said)
    assert "silo-3" not in outcome.record.survivors
    assert "silo-3: update-already-released" in said


def test_updates_of_rounds_given_up_do_not_stay_on_disk(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        make_fail(patch, letters.UNMASK, {"silo-1", "silo-2"})
        with pytest.raises(RoundAborted):
            run(federation)
    run(federation)
    for directory in federation.silos.values():
        assert list(directory.glob("rounds/*/update.sealed")) == []


def test_a_stray_folder_among_the_rounds_is_not_looked_at(federation: SmallFederation) -> None:
    run(federation)
    for root in (federation.coordinator, *federation.silos.values()):
        (root / "rounds/0001.bak").mkdir()
    (outcome,) = run(federation)
    assert outcome.record.round == 2


@pytest.mark.claim("C10")
def test_a_cut_line_that_no_record_names_is_noticed_before_another_round(federation: SmallFederation) -> None:
    """The last line is the silo's receipt, of which only the coordinator holds the signed head."""
    run(federation)
    directory = federation.silos[SiloId("silo-1")]
    ledger = directory / "ledger/ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert b'"kind":"receipt"' in lines[-1]
    ledger.write_bytes(b"".join(lines[:-1]))
    said: list[str] = []
    (outcome,) = run(federation, said=said)
    assert "silo-1" not in outcome.record.cohort
    assert any("ledger-rolled-back" in line for line in said)
    with pytest.raises(LedgerRolledBack):
        audit_silo(directory, witnessed_heads([federation.coordinator]))


def test_rounds_before_a_failure_are_handed_over_and_the_reason_is_the_caps(tmp_path: Path) -> None:
    federation = found(tmp_path, epsilon_cap=5.5)
    finished: list[RoundOutcome] = []
    with pytest.raises(CohortExhausted):
        run_local_rounds(
            federation.coordinator,
            list(federation.silos.values()),
            4,
            deadline_seconds=60.0,
            progress=silent,
            tell=lambda _: None,
            finished=finished.append,
        )
    assert [outcome.record.round for outcome in finished] == [1, 2]


def test_until_a_round_runs_no_more_than_it_takes(federation: SmallFederation) -> None:
    def run_until(until: int) -> list[int]:
        outcomes = run_local_rounds(
            federation.coordinator,
            list(federation.silos.values()),
            1,
            deadline_seconds=60.0,
            progress=silent,
            tell=lambda _: None,
            until=until,
        )
        return [outcome.record.round for outcome in outcomes]

    assert run_until(2) == [1, 2]
    assert run_until(2) == []
    assert run_until(3) == [3]


def test_what_is_left_of_a_silo_is_not_taken_for_a_coordinator(federation: SmallFederation) -> None:
    directory = federation.silos[SiloId("silo-1")]
    (directory / "silo.toml").unlink()
    with pytest.raises(ConfigError, match="left of"):
        status(directory)


def test_status_of_a_damaged_silo_says_so(federation: SmallFederation) -> None:
    run(federation)
    directory = federation.silos[SiloId("silo-1")]
    (directory / "features.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"features\.safetensors"):
        status(directory)


def test_status_tells_of_a_round_that_is_charged_and_not_finished(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        make_fail(patch, letters.MASKED_INPUT, {"silo-1", "silo-2"})
        with pytest.raises(RoundAborted):
            run(federation)
    assert "round 1 is charged" in status(federation.silos[SiloId("silo-3")]).waiting_for


@pytest.mark.claim("C7")
def test_a_silo_with_repeatable_noise_takes_part_in_no_federation(federation: SmallFederation) -> None:
    files = SiloFiles.open(federation.silos[SiloId("silo-1")])
    with files.ledger() as ledger, pytest.raises(LocalProtocolError, match="no federation"):
        SiloService(files, ledger, replace(OPACUS, randomness="insecure-test"))

"""A federation goes on with another roster: silos come and go, and everything before stays provable."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachefl_secure.errors import ConfigError, RoundAborted
from cachefl_secure.federation import last_heard
from cachefl_secure.federation.confirming import (
    ask_for_new_key,
    check_expected,
    confirm_change,
    ready_approval,
    show_change,
)
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.inspection import audit_coordinator, audit_silo, status
from cachefl_secure.federation.last_heard import LAST_HEARD_FILE
from cachefl_secure.federation.roster_files import CHANGE_FILE, approval_file, roster_file
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.standing_aside import stand_aside, take_part_again
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir
from cachefl_secure.federation.witnesses import witnessed_heads
from cachefl_secure.names import SiloId
from cachefl_secure.protocol.messages import roster_digest
from tests.changing import (
    chain_of,
    confirm,
    newcomer,
    propose,
    rosters_of,
    run,
    with_silo,
    without_silo,
)
from tests.small_federation import SmallFederation, found, found_coordinator

FOUR = ("silo-1", "silo-2", "silo-3", "silo-4")


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    """Five silos, one of which may collude: four make a quorum. One round is done."""
    federation = found(tmp_path, records=(12, 20, 9, 15, 11))
    run(federation)
    return federation


@pytest.mark.claim("C16")
def test_a_silo_is_added_and_takes_part_from_the_present_cache_on(federation: SmallFederation) -> None:
    sixth = newcomer(federation, "silo-6")
    propose(federation, [sixth])
    confirm(federation, FOUR)
    bigger = with_silo(federation, sixth)
    run(bigger)
    last = chain_of(bigger).verified[-1].record
    assert (last.round, set(last.survivors)) == (2, set(bigger.silos))
    assert [held.record.round for held in chain_of(bigger).verified] == [1, 2]
    for path in (bigger.coordinator, *bigger.silos.values()):
        rosters = rosters_of(path)
        assert (rosters.current.epoch, set(rosters.current.public_keys)) == (2, set(bigger.silos))
    assert not (bigger.coordinator / CHANGE_FILE).exists()
    # The newcomer recomputed the round that it was not there for.
    chain = SiloFiles.open(sixth).rounds()
    assert chain is not None
    assert chain.position == chain_of(bigger).position


@pytest.mark.claim("C16")
def test_a_removed_silo_is_asked_for_nothing_any_more(federation: SmallFederation) -> None:
    propose(federation, remove=["silo-5"])
    confirm(federation, FOUR)
    run(federation)  # the fifth is there and hears of it
    gone = status(federation.silos[SiloId("silo-5")])
    assert (gone.enrolled, gone.waiting_for) == (False, "nobody: epoch 2 of the roster removed this silo")
    smaller = without_silo(federation, "silo-5")
    record = chain_of(smaller).verified[-1].record
    assert set(record.cohort) == set(FOUR)
    assert record.roster_digest == roster_digest(rosters_of(smaller.coordinator).current)
    with pytest.raises(ConfigError, match="was not admitted"):
        run(federation)


@pytest.mark.claim("C16")
def test_nothing_changes_before_a_quorum_has_approved_and_training_goes_on(
    federation: SmallFederation,
) -> None:
    sixth = newcomer(federation, "silo-6")
    propose(federation, [sixth])
    confirm(federation, FOUR[:3])
    run(with_silo(federation, sixth))
    chain = chain_of(federation)
    assert (chain.position.round, chain.roster.epoch) == (2, 1)
    assert not SiloFiles.open(sixth).state.has("roster.bin")
    confirm(federation, FOUR[3:])
    run(with_silo(federation, sixth))
    assert (chain_of(federation).position.round, chain_of(federation).roster.epoch) == (3, 2)


@pytest.mark.claim("C16")
def test_no_round_under_a_new_roster_before_all_its_silos_have_countersigned_it(
    federation: SmallFederation,
) -> None:
    sixth = newcomer(federation, "silo-6")
    propose(federation, [sixth])
    confirm(federation, FOUR)
    with pytest.raises(RoundAborted):
        run(federation)  # the sixth is not there
    assert chain_of(federation).roster.epoch == 2
    assert "has not countersigned the roster of epoch 2" in status(federation.coordinator).silos["silo-6"]
    run(with_silo(federation, sixth))
    assert chain_of(federation).position.round == 2


@pytest.mark.claim("C16")
def test_a_newcomer_that_never_comes_is_removed_again_by_another_change(federation: SmallFederation) -> None:
    """The way out of a roster that not everybody can countersign."""
    propose(federation, [newcomer(federation, "silo-6")])
    confirm(federation, FOUR)
    with pytest.raises(RoundAborted):
        run(federation)
    propose(federation, remove=["silo-6"])
    confirm(federation, federation.silos)
    run(federation)
    assert [r.epoch for r in rosters_of(federation.silos[SiloId("silo-1")]).rosters] == [1, 2, 3]
    rounds = [held.record.round for held in chain_of(federation).verified]
    assert rounds == [1, 3]  # the second was begun under a roster that is over


@pytest.mark.claim("C16")
def test_a_silo_that_was_away_catches_up_through_several_epochs(federation: SmallFederation) -> None:
    away, grown = "silo-5", federation
    for name in ("silo-6", "silo-7"):
        path = newcomer(federation, name)
        propose(grown, [path])
        confirm(grown, [silo for silo in grown.silos if silo != away])
        grown = with_silo(grown, path)
        with pytest.raises(RoundAborted):
            run(grown, away)  # all must countersign, and one is away
    run(grown)
    assert [r.epoch for r in rosters_of(grown.silos[SiloId(away)]).rosters] == [1, 2, 3]
    run(grown, away)  # from now on a silo may be away again
    propose(grown, remove=["silo-6"])
    confirm(grown, [silo for silo in grown.silos if silo not in (away, "silo-6")])
    grown = without_silo(grown, "silo-6")
    run(grown)
    assert set(chain_of(grown).verified[-1].record.survivors) == set(grown.silos)
    assert rosters_of(grown.silos[SiloId(away)]).current.epoch == 4


@pytest.mark.claim("C16", "C20")
def test_audit_verifies_every_record_under_the_roster_of_its_time(federation: SmallFederation) -> None:
    sixth = newcomer(federation, "silo-6")
    propose(federation, [sixth])
    confirm(federation, FOUR)
    run(with_silo(federation, sixth))
    propose(federation, remove=["silo-2"])
    confirm(with_silo(federation, sixth), ["silo-1", "silo-3", "silo-4", "silo-5"])
    now = without_silo(with_silo(federation, sixth), "silo-2")
    run(now)
    witnessed = witnessed_heads([now.coordinator, *now.silos.values()])
    audits = [
        audit_coordinator(now.coordinator),
        *(audit_silo(path, witnessed) for path in now.silos.values()),
    ]
    for audit in audits:
        findings = [step.finding for step in audit.steps if step.what == "roster"]
        assert len(findings) == 3, audit.party
        assert "4 of the 5 before approved it (added: silo-6)" in findings[1]
        assert "5 of 5 silos have countersigned the roster, epoch 3" in findings[2]
        assert "removed: silo-2" in findings[2]
    assert any("3 records" in step.finding for step in audits[0].steps)
    assert len(witnessed) == 6  # also of the silo that left
    gone = audit_silo(federation.silos[SiloId("silo-2")], witnessed)
    assert gone.ledger is not None
    assert len(gone.ledger.spends) == 2


def test_every_party_says_what_waits_for_whom(federation: SmallFederation) -> None:
    sixth, first = newcomer(federation, "silo-6"), federation.silos[SiloId("silo-1")]
    assert status(first).roster_change == status(federation.coordinator).roster_change == ""
    propose(federation, [sixth])
    said = status(federation.coordinator).roster_change
    assert "0 of 4 approvals; not asked yet: silo-1, silo-2, silo-3, silo-4, silo-5" in said
    assert "silent" not in said
    assert "`round -n 0`" in said
    run(federation)  # brings the proposal to the silos
    assert "(added: silo-6): waits for you" in status(first).roster_change
    confirm_change(SiloFiles.open(first), show_change(SiloFiles.open(first)))
    assert "this silo approves" in status(first).roster_change
    run(federation)  # brings the approval to the coordinator
    said = status(federation.coordinator).roster_change
    assert "1 of 4 approvals; asked and silent: silo-2, silo-3, silo-4, silo-5" in said
    confirm(federation, FOUR[1:])
    run(with_silo(federation, sixth))
    for path in (first, sixth, federation.coordinator):
        assert (status(path).roster_change, status(path).epoch, status(path).enrolled) == ("", 2, True)
        assert status(path).roster_fingerprint == status(first).roster_fingerprint != ""


def test_only_a_silo_that_was_asked_is_called_silent(federation: SmallFederation) -> None:
    first = propose(federation, remove=["silo-5"])
    stand_aside(SiloFiles.open(federation.silos[SiloId("silo-2")]).state, "paused")
    run(federation, "silo-4", number=0)
    said = status(federation.coordinator).roster_change
    assert "asked and silent: silo-1, silo-3, silo-5; not asked yet: silo-2, silo-4" in said
    CoordinatorFiles.open(federation.coordinator).withdraw()
    assert propose(federation, remove=["silo-4"]) != first
    said = status(federation.coordinator).roster_change
    assert "not asked yet: silo-1, silo-2, silo-3, silo-4, silo-5" in said  # of this change


def test_the_coordinator_sees_who_stands_aside_and_when_each_silo_was_heard(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, fourth, fifth = sorted(federation.silos)
    monkeypatch.setattr(last_heard, "utc_now", lambda: "YESTERDAY")
    run(federation)
    stand_aside(SiloFiles.open(federation.silos[first]).state, "paused")
    stand_aside(SiloFiles.open(federation.silos[second]).state, "left")
    monkeypatch.setattr(last_heard, "utc_now", lambda: "TODAY")
    with pytest.raises(RoundAborted):
        run(federation, third)
    assert status(federation.coordinator).silos == {
        first: "holds round 2; paused, it said TODAY",
        second: "holds round 2; has left, it said TODAY; `admit --remove` takes it out of the roster",
        third: "holds round 2; no answer when it was asked TODAY; last heard YESTERDAY",
        fourth: "holds round 2; last heard TODAY",
        fifth: "holds round 2; last heard TODAY",
    }
    take_part_again(SiloFiles.open(federation.silos[first]).state)
    run(federation)
    assert status(federation.coordinator).silos[first] == "holds round 3; last heard TODAY"
    assert status(federation.coordinator).silos[third] == "holds round 3; last heard TODAY"


def test_notes_of_who_was_heard_stop_no_round_and_no_status(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    (federation.coordinator / LAST_HEARD_FILE).write_bytes(b'{"silo-1": 7}')
    run(federation)
    (federation.coordinator / LAST_HEARD_FILE).write_bytes(b"\xff")
    assert status(federation.coordinator).silos[SiloId("silo-1")] == "holds round 2; not asked yet"
    honest = StateDir.write

    def full(state: StateDir, relative: str, content: bytes, *, private: bool = False) -> None:
        if relative == LAST_HEARD_FILE:
            raise ConfigError(relative, "", "not written: No space left on device")
        honest(state, relative, content, private=private)

    monkeypatch.setattr(StateDir, "write", full)
    run(federation)
    assert chain_of(federation).position.round == 3


def test_a_change_is_proposed_and_followed_without_a_round(federation: SmallFederation) -> None:
    """After the last planned round nobody runs another one, and rosters still change."""
    run(federation, number=3)
    planned = "nobody: all planned rounds are done"
    assert status(federation.coordinator).waiting_for == planned
    sixth = newcomer(federation, "silo-6")
    propose(federation, [sixth])
    assert "nobody" not in status(federation.coordinator).waiting_for
    said = run(federation, "silo-5", number=0)
    assert said == ["4 of 5 silos are up to date", "silo-5: no answer (not given with --in-process)"]
    change = status(federation.coordinator).roster_change
    assert "asked and silent: silo-1, silo-2, silo-3, silo-4; not asked yet: silo-5" in change
    for silo in FOUR:
        files = SiloFiles.open(federation.silos[SiloId(silo)])
        confirm_change(files, show_change(files))
    assert run(with_silo(federation, sixth), number=0) == ["6 of 6 silos are up to date"]
    assert [chain_of(federation).roster.epoch, chain_of(federation).position.round] == [2, 4]
    assert (status(sixth).enrolled, status(sixth).rounds) == (True, 4)
    assert status(federation.coordinator).waiting_for == planned


def test_a_silo_says_what_the_key_that_it_asked_for_waits_for(federation: SmallFederation) -> None:
    path = federation.silos[SiloId("silo-1")]
    assert status(path).new_key == ""
    request, mark = ask_for_new_key(SiloFiles.open(path))
    said = status(path).new_key
    assert f"{mark}, asked for by `rotate`: waits for the coordinator to `admit` rotate-request.toml" in said
    propose(federation, [request])
    run(federation, number=0)
    assert "proposed for epoch 2, waits for the silos to approve" in status(path).new_key
    assert status(federation.silos[SiloId("silo-2")]).new_key == ""
    confirm(federation, FOUR)
    run(federation, number=0)
    assert (status(path).new_key, status(path).epoch, status(path).fingerprint) == ("", 2, mark)


def test_approvals_travel_as_files_as_well(federation: SmallFederation) -> None:
    propose(federation, remove=["silo-5"])
    written = confirm(federation, FOUR)
    files = CoordinatorFiles.open(federation.coordinator)
    assert {a.silo for a in files.add_approvals(written).approvals} == set(FOUR)
    assert "followed in the next `round`" in status(federation.coordinator).roster_change
    run(without_silo(federation, "silo-5"))
    assert chain_of(federation).roster.epoch == 2
    with pytest.raises(ConfigError, match="no change of the roster waits"):
        files.add_approvals(written)


def test_one_change_at_a_time_and_withdrawing_makes_room(federation: SmallFederation) -> None:
    files = CoordinatorFiles.open(federation.coordinator)
    propose(federation, remove=["silo-5"])
    with pytest.raises(ConfigError, match="waits for approvals already"):
        propose(federation, remove=["silo-4"])
    assert files.withdraw()
    assert not files.withdraw()
    propose(federation, remove=["silo-4"])


def test_an_approval_is_written_again_before_it_leaves(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last sync may have failed: lost after it left, the silo could approve another change to the same epoch."""
    propose(federation, remove=["silo-5"])
    confirm(federation, ["silo-1"])
    files, written = SiloFiles.open(federation.silos[SiloId("silo-1")]), list[str]()
    genuine = StateDir.write

    def recording(self: StateDir, relative: str, content: bytes, *, private: bool = False) -> None:
        written.append(relative)
        genuine(self, relative, content, private=private)

    monkeypatch.setattr(StateDir, "write", recording)
    assert ready_approval(files, rosters_of(federation.silos[SiloId("silo-1")])) is not None
    confirm(federation, ["silo-1"])
    assert written == [approval_file(2), approval_file(2)]
    with files.state.lock(".confirm.lock"):  # the operator is at it
        assert ready_approval(files, rosters_of(federation.silos[SiloId("silo-1")])) is None
    (federation.silos[SiloId("silo-1")] / approval_file(2)).unlink()
    assert ready_approval(files, rosters_of(federation.silos[SiloId("silo-1")])) is None


def test_a_certificate_of_an_earlier_roster_that_comes_back_stops_nobody(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given up and removed, and a loss of power undid the removal."""
    kept: list[bytes] = []
    genuine = StateDir.write

    def keeping(self: StateDir, relative: str, content: bytes, *, private: bool = False) -> None:
        if relative.endswith("/unmasking"):
            kept.append(content)
        genuine(self, relative, content, private=private)

    with monkeypatch.context() as patch:
        patch.setattr(StateDir, "write", keeping)
        run(federation)
    propose(federation, remove=["silo-5"])
    confirm(federation, FOUR)
    run(federation)
    state = CoordinatorFiles.open(federation.coordinator).state
    state.write("rounds/0004/unmasking", kept[-1], private=True)
    run(without_silo(federation, "silo-5"))
    assert chain_of(federation).position.round == 4
    assert not state.has("rounds/0004/unmasking")


def test_a_damaged_change_is_named_and_can_be_withdrawn(federation: SmallFederation) -> None:
    files = CoordinatorFiles.open(federation.coordinator)
    propose(federation, remove=["silo-5"])
    files.state.write(CHANGE_FILE, files.state.read(CHANGE_FILE)[:-1])
    with pytest.raises(ConfigError, match="damaged"):
        propose(federation, remove=["silo-4"])
    assert files.withdraw()
    propose(federation, remove=["silo-4"])


def test_nothing_is_withdrawn_where_nobody_was_admitted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no silos yet"):
        CoordinatorFiles.open(found_coordinator(tmp_path)).withdraw()


def test_a_change_is_proposed_only_upon_rosters_that_are_safe(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last sync may have failed: a loss of power would take the roster, and leave a change that follows nothing."""
    propose(federation, remove=["silo-5"])
    confirm(federation, FOUR)
    run(federation)
    sixth = newcomer(federation, "silo-6")
    written: list[str] = []
    genuine = StateDir.write

    def recording(self: StateDir, relative: str, content: bytes, *, private: bool = False) -> None:
        written.append(relative)
        genuine(self, relative, content, private=private)

    monkeypatch.setattr(StateDir, "write", recording)
    propose(federation, [sixth])
    assert written == [ROSTER_FILE, roster_file(2), CHANGE_FILE]


@pytest.mark.parametrize(
    ("remove", "why"),
    [
        (["silo-9"], "not in the roster"),
        ([], "nothing to change"),
        (["silo-4", "silo-5"], "4 must stay"),  # of five at most one leaves at a time: a quorum stays
    ],
)
def test_what_cannot_be_is_refused_when_it_is_proposed(
    federation: SmallFederation, remove: list[str], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        propose(federation, remove=remove)
    assert not (federation.coordinator / CHANGE_FILE).exists()


def test_too_few_silos_for_the_plan_are_no_new_roster(tmp_path: Path) -> None:
    federation = found(tmp_path, records=(5, 6, 7), colluders=0)
    with pytest.raises(ConfigError, match="at least 3"):
        propose(federation, remove=["silo-3"])


def test_a_member_asks_for_nothing_by_a_second_join_request(federation: SmallFederation) -> None:
    with pytest.raises(ConfigError, match="in the roster already"):
        propose(federation, [federation.silos[SiloId("silo-1")]])


def test_confirming_shows_who_comes_and_refuses_another_change_than_was_heard(
    federation: SmallFederation,
) -> None:
    sixth = newcomer(federation, "silo-6")
    propose(federation, [sixth], remove=["silo-5"])
    shown = show_change(
        SiloFiles.open(federation.silos[SiloId("silo-1")]), federation.coordinator / CHANGE_FILE
    )
    assert [(what, silo) for what, silo, _ in shown.rows()] == [("added", "silo-6"), ("removed", "silo-5")]
    assert status(sixth).fingerprint == shown.rows()[0][2]
    check_expected(shown, shown.spoken.upper().replace(" ", "  "))
    with pytest.raises(ConfigError, match="call the other silos"):
        check_expected(shown, shown.spoken[:-1] + ("0" if shown.spoken[-1] != "0" else "1"))
    with pytest.raises(ConfigError, match="eight groups"):
        check_expected(shown, "yes")


def test_a_silo_that_has_no_roster_has_nothing_to_confirm(federation: SmallFederation) -> None:
    sixth = newcomer(federation, "silo-6")
    propose(federation, [sixth])
    with pytest.raises(ConfigError, match="not been admitted yet"):
        show_change(SiloFiles.open(sixth), federation.coordinator / CHANGE_FILE)

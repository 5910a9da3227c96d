"""Who is in is decided by the silos: what a coordinator, with f of them on its side, cannot do to a roster."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import BadSignature, ConfigError, PeerError, RecordRejected, RoundAborted
from cachefl_secure.federation import letters
from cachefl_secure.federation.confirming import confirm_change, show_change
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.enrolment import sign_roster
from cachefl_secure.federation.inspection import audit_coordinator, open_chain
from cachefl_secure.federation.letters import Hello, Reply, Standing, Sync
from cachefl_secure.federation.record import open_record, sign_record
from cachefl_secure.federation.roster_change import (
    Approval,
    RosterChange,
    RosterHistory,
    approve,
    change_to_bytes,
    with_approvals,
)
from cachefl_secure.federation.roster_files import approval_file, keep_change, roster_file
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.names import SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import sign_manifest
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.messages import Manifest, Member, Roster, roster_digest
from tests.changing import (
    chain_of,
    confirm,
    forged_change,
    key_of,
    member,
    newcomer,
    propose,
    rosters_of,
    run,
    with_silo,
    without_silo,
)
from tests.small_federation import SmallFederation, found

FOUR = ("silo-1", "silo-2", "silo-3", "silo-4")
FIRST = SiloId("silo-1")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> SmallFederation:
    """Five silos, f = 1, so that four make a quorum; one round is done. Not to be changed by a test."""
    federation = found(tmp_path_factory.mktemp("roster"), records=(12, 20, 9, 15, 11))
    run(federation)
    return federation


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    """The same, to be changed."""
    federation = found(tmp_path, records=(12, 20, 9, 15, 11))
    run(federation)
    return federation


def members(rosters: RosterHistory, *more: Member, without: tuple[str, ...] = ()) -> list[Member]:
    return [each for each in rosters.current.members if each.silo not in without] + list(more)


def say(service: SiloService, phase: str, letter: Hello | Sync) -> Reply:
    return wire.decode(service.handle(phase, wire.encode(letter)), Reply, limit_bytes=1 << 20, peer="silo")


def told(path: Path, *letters_sent: Sync) -> list[str | None]:
    """What a silo says to these, one after another."""
    files = SiloFiles.open(path)
    with files.ledger() as ledger:
        service = SiloService(files, ledger)
        return [say(service, letters.SYNC, letter).declined for letter in letters_sent]


def sync(*changes: RosterChange, proposal: RosterChange | None = None) -> Sync:
    return Sync(b"", b"", (), changes=changes, proposal=proposal)


@pytest.mark.claim("C16")
@pytest.mark.parametrize("number", range(4))
def test_a_change_without_a_quorum_is_followed_by_nobody(played: SmallFederation, number: int) -> None:
    """Also not with the coordinator's own newcomers among those who approve."""
    rosters, sybil = rosters_of(played.coordinator), SigningKey.generate()
    change = forged_change(played, rosters, members(rosters, member("sybil", sybil)), FOUR[:number])
    with pytest.raises(PeerError, match=f"{number} approvals? of .* needs 4"):
        rosters.follow(change)
    own = approve(rosters.check_proposal(change), SiloId("sybil"), sybil)
    with pytest.raises(BadSignature, match="lacks it"):
        rosters.follow(with_approvals(change, [own]))
    assert told(played.silos[FIRST], sync(change)) == ["protocol-error"]
    assert rosters_of(played.silos[FIRST]).current.epoch == 1


@pytest.mark.claim("C16")
def test_one_silos_approval_counts_once(played: SmallFederation) -> None:
    rosters = rosters_of(played.coordinator)
    change = forged_change(played, rosters, members(rosters, member("sybil")), FOUR[:3])
    doubled = msgspec.structs.replace(change, approvals=(*change.approvals, change.approvals[0]))
    with pytest.raises(PeerError, match="approves twice"):
        rosters.follow(doubled)


@pytest.mark.claim("C16")
def test_approvals_of_another_change_or_under_another_name_are_worth_nothing(played: SmallFederation) -> None:
    rosters = rosters_of(played.coordinator)
    honest = forged_change(played, rosters, members(rosters, member("guest")), FOUR)
    rosters.follow(honest)
    hostile = forged_change(played, rosters, members(rosters, member("sybil")))
    with pytest.raises(BadSignature, match="another change"):
        rosters.follow(with_approvals(hostile, honest.approvals))
    new = roster_digest(rosters.check_proposal(hostile))
    renamed = [msgspec.structs.replace(approval, roster_digest=new) for approval in honest.approvals]
    with pytest.raises(BadSignature, match="does not verify"):
        rosters.follow(with_approvals(hostile, renamed))
    swapped = [msgspec.structs.replace(honest.approvals[0], silo=SiloId("silo-5")), *honest.approvals[1:]]
    with pytest.raises(BadSignature, match="does not verify"):
        rosters.follow(msgspec.structs.replace(honest, approvals=tuple(swapped)))


@pytest.mark.claim("C16")
def test_a_quorum_of_another_epoch_is_no_quorum(federation: SmallFederation) -> None:
    """Epoch 2 has six silos, five make its quorum. The four of epoch 1 may not decide about epoch 3, nor jump."""
    first = rosters_of(federation.coordinator)
    sixth = newcomer(federation, "silo-6")
    propose(federation, [sixth])
    confirm(federation, FOUR)
    now = with_silo(federation, sixth)
    run(now)
    second = rosters_of(federation.coordinator)
    assert (first.quorum, second.quorum) == (4, 4)
    old = forged_change(now, first, members(first, member("sybil")), FOUR)
    with pytest.raises(PeerError, match="does not follow epoch 2"):
        second.follow(old)
    jump = forged_change(now, first, members(first, member("sybil")), FOUR, epoch=3)
    with pytest.raises(PeerError, match="does not follow epoch"):
        first.follow(jump)
    assert told(federation.silos[FIRST], sync(old), sync(jump)) == ["roster-differs", "protocol-error"]
    assert rosters_of(federation.silos[FIRST]).current == second.current


@pytest.mark.claim("C16")
def test_of_two_competing_changes_at_most_one_passes_even_with_f_silos_for_both(
    federation: SmallFederation,
) -> None:
    """Two honest silos are shown one, two the other; the fifth colludes and approves both."""
    rosters = rosters_of(federation.coordinator)
    changes = [
        forged_change(federation, rosters, members(rosters, member(name)), ["silo-5"]) for name in "ab"
    ]
    proposal = federation.coordinator / "shown.bin"
    for change, silos in zip(changes, (FOUR[:2], FOUR[2:]), strict=True):
        proposal.write_bytes(change_to_bytes(change))
        for silo in silos:
            files = SiloFiles.open(federation.silos[SiloId(silo)])
            confirm_change(files, show_change(files, proposal))
    for change, silos in zip(changes, (FOUR[2:], FOUR[:2]), strict=True):
        proposal.write_bytes(change_to_bytes(change))
        for silo in silos:  # now each is shown the other one
            files = SiloFiles.open(federation.silos[SiloId(silo)])
            with pytest.raises(ConfigError, match="approved another change to epoch 2"):
                confirm_change(files, show_change(files, proposal))
    left = [_approvals_that_leave(path) for path in federation.silos.values()]
    for change in changes:
        new = rosters.check_proposal(change)
        given = [each for each in left if each is not None and each.roster_digest == roster_digest(new)]
        with pytest.raises(PeerError, match="3 approvals"):
            rosters.follow(with_approvals(change, given))


def _approvals_that_leave(path: Path) -> Approval | None:
    files = SiloFiles.open(path)
    with files.ledger() as ledger:
        answer = say(SiloService(files, ledger), letters.HELLO, Hello(plan_digest(files.plan))).answer
    return wire.decode(answer, Standing, limit_bytes=1 << 12, peer=files.silo).approval


@pytest.mark.claim("C16")
def test_a_silo_approves_nothing_because_the_coordinator_asks(federation: SmallFederation) -> None:
    rosters = rosters_of(federation.coordinator)
    change = forged_change(federation, rosters, members(rosters, member("sybil")))
    assert told(federation.silos[FIRST], sync(proposal=change)) == [None]
    assert _approvals_that_leave(federation.silos[FIRST]) is None
    assert not SiloFiles.open(federation.silos[FIRST]).state.has(approval_file(2))


@pytest.mark.claim("C16")
def test_proposals_that_differ_between_silos_have_different_fingerprints(federation: SmallFederation) -> None:
    """One silo is shown the true newcomer, another one a sybil under the same name."""
    rosters = rosters_of(federation.coordinator)
    spoken, proposal = set(), federation.coordinator / "shown.bin"
    for silo in FOUR[:2]:
        change = forged_change(federation, rosters, members(rosters, member("clinic")))
        proposal.write_bytes(change_to_bytes(change))
        spoken.add(show_change(SiloFiles.open(federation.silos[SiloId(silo)]), proposal).spoken)
    assert len(spoken) == 2


@pytest.mark.claim("C16")
def test_a_silo_never_goes_back_to_an_older_epoch(federation: SmallFederation) -> None:
    propose(federation, remove=["silo-5"])
    first = rosters_of(federation.coordinator)
    confirm(federation, FOUR)
    run(federation)
    files = CoordinatorFiles.open(federation.coordinator)
    again = Sync(files.state.read("roster.bin"), b"", ())
    assert (
        told(federation.silos[FIRST], again, sync(rosters_of(federation.coordinator).changes[0]))
        == [None] * 2
    )
    assert rosters_of(federation.silos[FIRST]).current.epoch == 2
    other = sync(forged_change(federation, first, members(first, member("sybil")), FOUR))
    assert told(federation.silos[FIRST], other) == ["roster-differs"]  # with a quorum, too late
    asked = _manifest(federation, first.current, tuple(sorted(federation.silos)))
    for silo, why in ((FIRST, "roster-differs"), (SiloId("silo-5"), "removed")):
        assert _answer_to(federation, silo, asked) == why


def _manifest(federation: SmallFederation, roster: Roster, cohort: tuple[SiloId, ...]) -> Manifest:
    chain = chain_of(federation)
    return Manifest(
        plan_digest=plan_digest(chain.plan),
        roster_digest=roster_digest(roster),
        round=chain.position.round + 1,
        attempt=1,
        cohort=cohort,
        cache_digest=chain.position.cache_digest,
        previous_record=chain.position.record_digest,
    )


def _answer_to(federation: SmallFederation, silo: SiloId, manifest: Manifest) -> str | None:
    coordinator, files = CoordinatorFiles.open(federation.coordinator), SiloFiles.open(federation.silos[silo])
    with files.ledger() as ledger:
        raw = SiloService(files, ledger).handle(
            letters.MANIFEST, sign_manifest(manifest, coordinator.state.signing_key())
        )
    return wire.decode(raw, Reply, limit_bytes=1 << 16, peer=silo).declined


@pytest.mark.claim("C16")
def test_a_removed_silo_is_no_member_for_anybody_and_its_key_and_name_never_return(
    federation: SmallFederation,
) -> None:
    fifth = key_of(federation.silos[SiloId("silo-5")])
    propose(federation, remove=["silo-5"])
    confirm(federation, FOUR)
    run(federation)
    rosters = rosters_of(federation.silos[FIRST])
    with_fifth = _manifest(federation, rosters.current, tuple(sorted(federation.silos)))
    assert _answer_to(federation, FIRST, with_fifth) == "cohort-refused"
    cases = (
        (member("silo-5", fifth), "key that was used before"),
        (member("another-name", fifth), "key that was used before"),
        (member("silo-5"), "a name does not return"),
    )
    for comes_back, why in cases:
        with pytest.raises(PeerError, match=why):
            rosters.follow(forged_change(federation, rosters, members(rosters, comes_back), FOUR))
    # Its approval counts no more: three that stayed and the one that left are no quorum.
    smaller = forged_change(federation, rosters, members(rosters, member("sybil")), [*FOUR[:2], "silo-5"])
    with pytest.raises(BadSignature, match="lacks it"):
        rosters.follow(smaller)


@pytest.mark.claim("C16")
def test_a_members_key_is_not_replaced_or_lent_without_its_old_key(played: SmallFederation) -> None:
    """With a quorum: even four silos together cannot give the fifth's name to somebody else."""
    rosters, fifth = rosters_of(played.coordinator), key_of(played.silos[SiloId("silo-5")])
    taken = forged_change(played, rosters, members(rosters, member("silo-5"), without=("silo-5",)), FOUR)
    with pytest.raises(PeerError, match="nobody vouches for the new key of silo-5"):
        rosters.follow(taken)
    renamed = members(rosters, member("other", fifth), without=("silo-5",))
    with pytest.raises(PeerError, match="key that was used before"):
        rosters.follow(forged_change(played, rosters, renamed, FOUR))


@pytest.mark.claim("C16")
def test_a_change_that_leaves_a_quorum_behind_is_refused(played: SmallFederation) -> None:
    """Those left behind could go on under the old roster, and records would have two continuations."""
    rosters = rosters_of(played.coordinator)
    fresh = [member(name) for name in ("a", "b", "c")]
    change = forged_change(played, rosters, members(rosters, *fresh, without=("silo-4", "silo-5")), FOUR)
    with pytest.raises(PeerError, match="keeps 3 silos, 4 must stay"):
        rosters.follow(change)


@pytest.mark.claim("C16")
def test_only_the_plans_coordinator_signs_rosters(played: SmallFederation) -> None:
    rosters = rosters_of(played.coordinator)
    change = forged_change(played, rosters, members(rosters, member("guest")), FOUR)
    roster = rosters.check_proposal(change)
    forged = msgspec.structs.replace(change, roster=sign_roster(roster, SigningKey.generate()))
    with pytest.raises(BadSignature):
        rosters.follow(forged)
    for changes in ({"plan_digest": "0" * 64}, {"federation_id": "0" * 32}, {"previous": None}):
        files = CoordinatorFiles.open(played.coordinator)
        other = msgspec.structs.replace(roster, **changes)
        lie = msgspec.structs.replace(change, roster=sign_roster(other, files.state.signing_key()))
        with pytest.raises(PeerError, match=r"another plan|another federation|follows none"):
            rosters.follow(lie)


@pytest.mark.claim("C16")
def test_a_newcomer_is_never_asked_under_a_roster_that_old_silos_did_not_approve(
    federation: SmallFederation,
) -> None:
    """The coordinator shows the newcomer a chain of rosters of its own; a quorum of the first is missing."""
    sixth, rosters = newcomer(federation, "silo-6"), rosters_of(federation.coordinator)
    change = forged_change(federation, rosters, members(rosters, member("silo-6", key_of(sixth))), ["silo-5"])
    files = CoordinatorFiles.open(federation.coordinator)
    first, cache = files.state.read("roster.bin"), files.state.read("models/0000.safetensors")
    assert told(sixth, Sync(first, cache, (), changes=(change,))) == ["protocol-error"]
    assert not SiloFiles.open(sixth).state.has("roster.bin")
    assert told(sixth, Sync(first, cache, ())) == ["protocol-error"]  # a roster that lacks it


@pytest.mark.claim("C16")
def test_a_cohort_of_sybils_needs_the_signatures_of_the_silos_it_joins(federation: SmallFederation) -> None:
    """Even a passed change gives sybils no round before every old silo has countersigned it too."""
    rosters = rosters_of(federation.coordinator)
    sybils = [member(f"sybil-{n}") for n in range(8)]
    passed = forged_change(federation, rosters, members(rosters, *sybils), FOUR)
    history = rosters.follow(passed)
    path = federation.silos[FIRST]
    assert told(path, sync(passed)) == [None]
    cohort = tuple(sorted(each.silo for each in history.current.members))
    assert _answer_to(federation, FIRST, _manifest(federation, history.current, cohort)) == (
        "roster-not-countersigned"
    )


@pytest.mark.claim("C5", "C16")
def test_a_record_under_an_older_roster_than_the_last_is_refused(federation: SmallFederation) -> None:
    propose(federation, remove=["silo-5"])
    confirm(federation, FOUR)
    run(federation)
    files = CoordinatorFiles.open(federation.coordinator)
    first = roster_digest(files.rosters().rosters[0])
    name = "rounds/0002/record.json"
    record, _ = open_record(files.state.read(name), files.plan)
    lie = msgspec.structs.replace(record, roster_digest=first, round=3)
    files.state.write("rounds/0003/record.json", sign_record(lie, files.state.signing_key()))
    with pytest.raises(RecordRejected, match="epoch 1 after that of 2"):
        open_chain(federation.coordinator)
    strange = msgspec.structs.replace(record, roster_digest="f" * 64)
    files.state.remove("rounds/0003/record.json")
    files.state.write(name, sign_record(strange, files.state.signing_key()))
    with pytest.raises(RecordRejected, match="another roster"):
        open_chain(federation.coordinator)


@pytest.mark.claim("C16")
def test_audit_refuses_a_roster_file_that_was_touched(federation: SmallFederation) -> None:
    propose(federation, remove=["silo-5"])
    confirm(federation, FOUR)
    run(federation)
    path = federation.coordinator / roster_file(2)
    genuine = path.read_bytes()
    for at in range(0, len(genuine), 37):
        path.write_bytes(genuine[:at] + bytes([genuine[at] ^ 1]) + genuine[at + 1 :])
        with pytest.raises(ConfigError, match="damaged"):
            audit_coordinator(federation.coordinator)
    path.unlink()  # rolled back: the record of round 2 is under a roster that is not there
    with pytest.raises(RecordRejected, match="another roster"):
        audit_coordinator(federation.coordinator)


@pytest.mark.claim("C3", "C5")
def test_an_update_that_was_sent_under_one_roster_enters_no_sum_under_the_next(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 2 is broken off after masked inputs left; then the roster changes, and round 2 is asked for again."""
    _break_off_a_round(federation, monkeypatch)
    sent, first = federation.silos[FIRST] / "rounds/0002/sent", rosters_of(federation.coordinator).current
    assert sent.read_text() == roster_digest(first)
    propose(federation, remove=["silo-5"])
    confirm(federation, FOUR)
    run(federation, number=0)
    assert not list(federation.silos[FIRST].glob("rounds/*/session"))  # its masks are gone
    assert (federation.silos[FIRST] / "rounds/0002/update.sealed").exists()
    second = rosters_of(federation.coordinator).current
    asked = _manifest(federation, second, tuple(sorted(second.public_keys)))
    assert (
        _answer_to(federation, FIRST, msgspec.structs.replace(asked, attempt=2)) == "update-already-released"
    )
    run(without_silo(federation, "silo-5"))
    record = chain_of(federation).verified[-1].record
    assert (record.round, record.roster_digest) == (3, roster_digest(second))


@pytest.mark.claim("C3", "C17")
def test_a_silo_killed_right_after_it_followed_destroys_the_masks_of_the_attempt_before(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_off_a_round(federation, monkeypatch)
    files, rosters = SiloFiles.open(federation.silos[FIRST]), rosters_of(federation.coordinator)
    assert files.state.has("rounds/0002/session")
    change = forged_change(federation, rosters, members(rosters, member("guest")), FOUR)
    keep_change(files.state, rosters.follow(change))  # and here it dies
    with files.ledger() as ledger:
        service = SiloService(files, ledger)
        assert service.take_trouble() is None
        assert not files.state.has("rounds/0002/session")
        late = wire.decode(service.handle(letters.UNMASK, b""), Reply, limit_bytes=1 << 10, peer=FIRST)
        assert late.declined == "stale-round"


@pytest.mark.claim("C3", "C16")
def test_a_round_between_certificate_and_record_is_finished_under_its_roster_before_the_next_is_followed(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object) -> None:
        raise RoundAborted(5, 5)  # not given up: who is silent may still come

    propose(federation, remove=["silo-5"])
    with monkeypatch.context() as broken:
        broken.setattr(CoordinatorSession, "on_unmask_shares", late)
        with pytest.raises(RoundAborted):
            run(federation)
    confirm(federation, FOUR)
    with monkeypatch.context() as broken:
        broken.setattr(CoordinatorSession, "on_unmask_shares", late)
        with pytest.raises(RoundAborted):
            run(federation)
    assert chain_of(federation).roster.epoch == 1
    run(federation)
    chain = chain_of(federation)
    assert (chain.position.round, len(chain.verified[-1].record.survivors)) == (2, 5)
    assert chain.roster.epoch == 2  # followed in the last look around
    run(without_silo(federation, "silo-5"))
    assert len(chain_of(federation).verified[-1].record.survivors) == 4


def _break_off_a_round(federation: SmallFederation, monkeypatch: pytest.MonkeyPatch) -> None:
    """After masked inputs left, before a certificate."""

    def nobody_signs(*_: object) -> None:
        raise RoundAborted(0, 4)

    with monkeypatch.context() as broken:
        broken.setattr(CoordinatorSession, "on_statements", nobody_signs)
        with pytest.raises(RoundAborted):
            run(federation)

"""Operators' commands while processes serve at a mailbox: two at once, pauses, arrivals, new keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachefl_secure.crypto.sign import SigningKey, fingerprint
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import SiloId
from tests.changing import rosters_of, with_silo
from tests.processes import Stage, stage
from tests.small_federation import join_with_random_features

pytestmark = pytest.mark.slow
IN_USE = "another cachefl-secure process works here"


def test_a_second_round_command_and_a_second_process_of_a_silo_are_refused_and_disturb_nothing(
    tmp_path: Path,
) -> None:
    with stage(tmp_path) as play:
        play.serve()
        first, gate = play.held_round("share:before")
        again = play.round()
        assert again.end() == 7
        assert IN_USE in again.said
        silo = play.federation.silos[SiloId("silo-1")]
        twice = play.start("join", play.federation.coordinator / "invite.toml", silo)
        assert twice.end() == 7
        assert IN_USE in twice.said
        admitting = play.start("admit", play.federation.coordinator, "--yes")
        assert admitting.end() == 7
        gate.touch()
        assert first.result()["rounds"][0]["survivors"] == play.silos
        play.kill_all()
        play.check_no_second_reply()
        assert [record.attempt for record in play.records()] == [1]
        assert play.charges() == dict.fromkeys(play.silos, 1)


def test_a_silo_that_pauses_goes_on_and_leaves_is_counted_when_it_takes_part(tmp_path: Path) -> None:
    """None of it needs its service to be stopped, and what it has begun it finishes."""
    with stage(tmp_path) as play:
        play.serve()
        others, silo = play.silos[1:], play.federation.silos[SiloId("silo-1")]
        begun, gate = play.held_round("masked-input:before")
        assert play.start("pause", silo).end() == 0
        gate.touch()
        assert begun.result()["rounds"][0]["survivors"] == play.silos
        paused = play.play_round()
        assert (paused["survivors"], paused["declined"]) == (others, {"silo-1": "paused"})
        assert play.start("resume", silo).end() == 0
        assert play.play_round()["survivors"] == play.silos
        assert play.start("leave", silo, "--yes").end() == 0
        left = play.play_round()
        assert (left["survivors"], left["declined"]) == (others, {"silo-1": "left"})
        returning = play.start("resume", silo)
        assert returning.end() == 7
        assert "has left this federation" in returning.said
        play.until_said("silo-1", "this silo has left")
        play.kill_all()
        assert [len(record.survivors) for record in play.records()] == [4, 3, 4, 3]
        assert play.charges() == dict.fromkeys(others, 4) | {"silo-1": 2}


def test_a_silo_that_asks_at_the_mailbox_is_counted_once_the_others_have_confirmed(tmp_path: Path) -> None:
    """admit, a round that carries the proposal, confirm at a quorum, and a round with the newcomer."""
    with stage(tmp_path) as play:
        play.serve()
        assert play.play_round()["survivors"] == play.silos
        newcomer = SiloId("silo-5")
        path = join_with_random_features(
            play.federation.coordinator.parent / newcomer, play.federation.coordinator, newcomer, 14, seed=70
        )
        play.federation = with_silo(play.federation, path)
        play.serve(newcomer)
        _change_roster(play, ["added", newcomer], StateDir(path).signing_key())
        after = play.play_round()
        assert after["survivors"] == play.silos
        play.until_said(newcomer, "round 3 of 12 is recorded and verified")
        play.kill_all()
        assert [len(record.survivors) for record in play.records()] == [4, 4, 5]
        assert play.charges() == dict.fromkeys(play.silos, 3) | {newcomer: 1}
        assert rosters_of(path).current == rosters_of(play.federation.coordinator).current


def test_a_silo_that_serves_goes_over_to_its_new_key_by_itself(tmp_path: Path) -> None:
    """rotate leaves its request at the mailbox; the parcels of the silo carry the new key from then on."""
    with stage(tmp_path) as play:
        play.serve()
        assert play.play_round()["survivors"] == play.silos
        rotating = SiloId("silo-1")
        path = play.federation.silos[rotating]
        before = SiloFiles.open(path).state.signing_key().public_key
        assert play.start("rotate", path).end() == 0
        following = StateDir(path).next_signing_key()
        assert following is not None
        _change_roster(play, ["new key", rotating], following)
        assert play.play_round()["survivors"] == play.silos
        after = SiloFiles.open(path).state.signing_key().public_key
        assert after != before
        assert rosters_of(play.federation.coordinator).current.public_keys[rotating] == after
        play.serving[rotating].kill()
        play.serve(rotating)  # it finds its way after a crash, too
        assert play.play_round()["survivors"] == play.silos
        play.kill_all()
        assert len(play.records()) == 4
        assert play.charges() == dict.fromkeys(play.silos, 4)


def _change_roster(play: Stage, expected: list[str], key: SigningKey) -> None:
    """What the operators do about the one request that waits at the mailbox, with this key."""
    heard = ("--expect", fingerprint(key.public_key))
    proposed = play.start("admit", play.federation.coordinator, "--yes", "--json", *heard).result()
    assert [row[:2] for row in proposed["change"]] == [expected]
    before = sorted(rosters_of(play.federation.coordinator).current.public_keys)
    assert play.play_round()["survivors"] == before
    for silo in before[: proposed["quorum"]]:
        confirming = play.start("confirm", play.federation.silos[SiloId(silo)], "--yes")
        assert confirming.end() == 0, confirming.said

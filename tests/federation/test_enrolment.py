"""Invites, join requests and the roster."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachefl_secure.crypto.sign import SigningKey, fingerprint
from cachefl_secure.errors import ConfigError, PeerError
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.enrolment import (
    check_own_entry,
    make_roster,
    open_roster,
    read_invite,
    sign_roster,
)
from cachefl_secure.federation.following import pin_first_roster
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.names import PublicKeyHex, SiloId
from cachefl_secure.protocol.messages import Member
from tests.small_federation import found, found_coordinator, join_with_random_features, small_privacy


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    return found_coordinator(tmp_path / "coordinator")


def member(name: str) -> Member:
    return Member(silo=SiloId(name), public_key=SigningKey.generate().public_key)


def test_an_invite_that_was_changed_is_refused(coordinator: Path) -> None:
    invite = coordinator / "invite.toml"
    invite.write_text(invite.read_text().replace("clip_norm = 0.1", "clip_norm = 0.2"))
    with pytest.raises(ConfigError, match="the invite was changed"):
        read_invite(invite)


def test_the_expected_fingerprint_may_be_written_as_people_do(coordinator: Path) -> None:
    invite = coordinator / "invite.toml"
    spoken = fingerprint(PublicKeyHex(read_invite(invite).coordinator_public_key))
    assert read_invite(invite, expect=spoken.upper().replace(" ", "  ")) == read_invite(invite)
    with pytest.raises(ConfigError, match="not as expected"):
        read_invite(invite, expect=spoken[:-1] + ("0" if spoken[-1] != "0" else "1"))


def test_a_join_request_for_another_plan_is_refused(coordinator: Path, tmp_path: Path) -> None:
    other = found_coordinator(tmp_path / "other")
    silo = join_with_random_features(tmp_path / "a", other, SiloId("a"), 5, seed=1)
    with pytest.raises(ConfigError, match="plan_digest"):
        CoordinatorFiles.open(coordinator).candidates([silo / "join-request.toml"])


@pytest.mark.claim("C16")
def test_a_join_request_whose_key_or_name_was_swapped_is_refused(coordinator: Path, tmp_path: Path) -> None:
    silo = join_with_random_features(tmp_path / "a", coordinator, SiloId("a"), 5, seed=1)
    request = silo / "join-request.toml"
    genuine = request.read_text()
    key = SiloFiles.open(silo).state.signing_key().public_key
    for changed in (
        genuine.replace(key, SigningKey.generate().public_key),
        genuine.replace('silo = "a"', 'silo = "b"'),
    ):
        request.write_text(changed)
        with pytest.raises(ConfigError, match="signature"):
            CoordinatorFiles.open(coordinator).candidates([request])


def test_one_name_or_one_key_cannot_be_admitted_twice(coordinator: Path) -> None:
    plan = read_invite(coordinator / "invite.toml")
    first = member("a")
    with pytest.raises(ConfigError, match="a stands twice"):
        make_roster(plan, [first, member("b"), member("a")])
    with pytest.raises(ConfigError, match="public_key"):
        make_roster(plan, [first, member("b"), Member(silo=SiloId("c"), public_key=first.public_key)])


def test_fewer_silos_than_the_minimum_are_not_a_federation(coordinator: Path) -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        make_roster(read_invite(coordinator / "invite.toml"), [member("a"), member("b")])


@pytest.mark.claim("C16")
def test_a_silo_pins_only_a_roster_that_the_coordinator_signed_and_that_names_its_key(
    coordinator: Path,
) -> None:
    files = CoordinatorFiles.open(coordinator)
    own = member("a")
    signed = sign_roster(make_roster(files.plan, [own, member("b"), member("c")]), files.state.signing_key())
    roster = open_roster(signed, files.plan)
    check_own_entry(roster, SiloId("a"), PublicKeyHex(own.public_key))
    assert roster.epoch == 1
    with pytest.raises(PeerError, match="lacks this silo"):
        check_own_entry(roster, SiloId("d"), PublicKeyHex(own.public_key))
    with pytest.raises(PeerError, match="another key"):
        check_own_entry(roster, SiloId("a"), SigningKey.generate().public_key)
    forged = sign_roster(roster, SigningKey.generate())
    with pytest.raises(PeerError, match="signature"):
        open_roster(forged, files.plan)


@pytest.mark.claim("C16")
def test_a_first_roster_without_this_silo_or_with_another_key_of_it_is_not_kept(
    coordinator: Path, tmp_path: Path
) -> None:
    files = CoordinatorFiles.open(coordinator)
    silo = SiloFiles.open(join_with_random_features(tmp_path / "a", coordinator, SiloId("a"), 5, seed=1))
    own, others = Member(SiloId("a"), silo.state.signing_key().public_key), [member("b"), member("c")]
    for members in ([*others, member("d")], [*others, member("a")]):
        signed = sign_roster(make_roster(files.plan, members), files.state.signing_key())
        with pytest.raises(PeerError, match="lacks this silo or names another key"):
            pin_first_roster(signed, (), silo)
        assert not silo.state.has("roster.bin")
    pin_first_roster(
        sign_roster(make_roster(files.plan, [*others, own]), files.state.signing_key()), (), silo
    )
    assert silo.state.has("roster.bin")


def test_admitting_again_is_refused_because_silos_have_pinned_the_roster(tmp_path: Path) -> None:
    federation = found(tmp_path)
    files = CoordinatorFiles.open(federation.coordinator)
    requests = [path / "join-request.toml" for path in federation.silos.values()]
    with pytest.raises(ConfigError, match="admitted already"):
        files.admit(files.candidates(requests))


def test_an_interrupted_join_is_simply_run_again(coordinator: Path, tmp_path: Path) -> None:
    root = tmp_path / "a"
    join_with_random_features(root, coordinator, SiloId("a"), 5, seed=1)
    (root / ".unfinished").touch()  # as a kill before the last write leaves it
    with pytest.raises(ConfigError, match="join was interrupted"):
        SiloFiles.open(root)
    join_with_random_features(root, coordinator, SiloId("a"), 5, seed=1)
    assert SiloFiles.open(root).silo == "a"


def test_joining_into_an_occupied_directory_touches_nothing(coordinator: Path, tmp_path: Path) -> None:
    root = tmp_path / "a"
    root.mkdir()
    (root / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        join_with_random_features(root, coordinator, SiloId("a"), 5, seed=1)
    assert [entry.name for entry in root.iterdir()] == ["thesis.tex"]


def test_a_plan_without_privacy_needs_a_word_from_the_silo(tmp_path: Path) -> None:
    from cachefl_secure.federation.clip_source import ClipSource
    from cachefl_secure.federation.joining import JoinChoices, join_federation

    coordinator = found_coordinator(tmp_path / "c", privacy=PrivacyChoices(mechanism="none").draft())
    choices = JoinChoices(name="a", images=tmp_path, clip=ClipSource("local-dir", "", tmp_path))
    with pytest.raises(ConfigError, match="--not-private"):
        join_federation(coordinator / "invite.toml", tmp_path / "a", choices)
    assert not (tmp_path / "a").exists()


def test_a_delta_that_allows_publishing_a_record_is_refused_at_join(tmp_path: Path) -> None:
    """delta = 1e-3 and a hundred records: known before anything is written, and to this silo only."""
    from cachefl_secure.federation.joining import check_delta

    plan = read_invite(
        found_coordinator(tmp_path / "c", privacy=small_privacy(PrivacyChoices(delta=1e-3))) / "invite.toml"
    )
    check_delta(plan, 100)
    with pytest.raises(ConfigError, match="101 records"):
        check_delta(plan, 101)

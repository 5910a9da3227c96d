"""A silo gets a new key: the old one vouches for it, the others agree, and its ledger stays one chain."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from cachefl_secure import durable
from cachefl_secure.crypto.sign import SigningKey, fingerprint
from cachefl_secure.errors import BadSignature, ConfigError, PeerError
from cachefl_secure.federation.confirming import ROTATE_FILE, ask_for_new_key, show_change
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import CoordinatorService
from cachefl_secure.federation.enrolment import write_join_request
from cachefl_secure.federation.inspection import audit_coordinator, audit_silo, status
from cachefl_secure.federation.roster_files import CHANGE_FILE, roster_file
from cachefl_secure.federation.silo_files import LEDGER_FILE, SiloFiles
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.federation.synchronising import Attendance
from cachefl_secure.federation.witnesses import witnessed_heads
from cachefl_secure.names import SiloId
from cachefl_secure.privacy import append_only
from tests.changing import (
    chain_of,
    confirm,
    copied,
    forged_change,
    key_of,
    member,
    propose,
    rosters_of,
    run,
)
from tests.federation.test_crash_points import Channel, Killed, Killer, Silo
from tests.small_federation import SmallFederation, found

SECOND = SiloId("silo-2")
OTHERS = ("silo-1", "silo-3", "silo-4", "silo-5")


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    federation = found(tmp_path / "founded", records=(12, 20, 9, 15, 11))
    run(federation)
    return federation


def ask(federation: SmallFederation) -> str:
    """The second silo asks, the others agree; returns the new fingerprint."""
    path = federation.silos[SECOND]
    written, mark = ask_for_new_key(SiloFiles.open(path))
    propose(federation, [written])
    confirm(federation, OTHERS)
    return mark


@pytest.mark.claim("C16", "C10")
def test_a_silo_goes_over_to_its_new_key_and_its_ledger_goes_on(federation: SmallFederation) -> None:
    path = federation.silos[SECOND]
    old = key_of(path)
    mark = ask(federation)
    shown = show_change(
        SiloFiles.open(federation.silos[SiloId("silo-1")]), federation.coordinator / CHANGE_FILE
    )
    assert shown.rows() == [("new key", "silo-2", mark)]
    assert key_of(path).public_key == old.public_key  # until the roster names the new one
    run(federation, number=2)
    assert fingerprint(key_of(path).public_key) == mark == status(path).fingerprint
    assert mark != fingerprint(old.public_key)
    assert not (path / "keys/next-signing.key").exists()
    record = chain_of(federation).verified[-1].record
    assert (record.round, SECOND in record.survivors) == (3, True)
    kinds = (path / LEDGER_FILE).read_text().count('"kind":"rotate_key"')
    assert kinds == 1
    with SiloFiles.open(path).ledger() as ledger:
        assert [spend.round for spend in ledger.spends] == [1, 2, 3]
    witnessed = witnessed_heads([federation.coordinator, *federation.silos.values()])
    assert witnessed[old.public_key] == witnessed[key_of(path).public_key]
    assert len(witnessed[old.public_key]) >= 3  # heads from under both keys
    for silo in federation.silos.values():
        audit_silo(silo, witnessed)
    audit_coordinator(federation.coordinator)


@pytest.mark.claim("C10", "C17")
def test_no_key_is_replaced_before_the_roster_that_names_it_is_on_the_disk(
    federation: SmallFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A roster whose last sync failed is seen by the next process, and is gone after a loss of power."""
    ask(federation)
    path, before = federation.silos[SECOND], tmp_path / "before"
    shutil.copytree(path, before)
    run(federation)
    (before / "rosters").mkdir(mode=0o700)
    shutil.copy(path / roster_file(2), before / roster_file(2))
    replaced, replace_file = list[str](), durable.replace_file

    def watched(target: durable.AnyPath, content: bytes, mode: int) -> None:
        replaced.append(Path(target).relative_to(before).as_posix())
        replace_file(target, content, mode)

    monkeypatch.setattr(durable, "replace_file", watched)
    SiloFiles.open(before).ledger().close()
    assert replaced == ["roster.bin", roster_file(2), "keys/signing.key"]
    assert key_of(before).public_key == key_of(path).public_key


@pytest.mark.claim("C16")
def test_the_old_key_is_refused_for_ever(federation: SmallFederation) -> None:
    old = key_of(federation.silos[SECOND])
    ask(federation)
    run(federation)
    rosters = rosters_of(federation.silos[SiloId("silo-1")])
    for comes_back in (member("silo-9", old), member("silo-2", old)):
        members = [each for each in rosters.current.members if each.silo != comes_back.silo] + [comes_back]
        with pytest.raises(PeerError, match="used before"):
            rosters.follow(forged_change(federation, rosters, members, OTHERS))


@pytest.mark.claim("C16")
def test_a_new_key_that_the_old_one_did_not_sign_is_refused(
    federation: SmallFederation, tmp_path: Path
) -> None:
    """Somebody else's word, or the right word for another key."""
    plan, thief = federation.plan, SigningKey.generate()
    own = key_of(federation.silos[SECOND])
    request = tmp_path / "request.toml"
    request.write_bytes(write_join_request(SECOND, plan, thief, old_key=SigningKey.generate()))
    with pytest.raises(ConfigError, match="new-key"):
        propose(federation, [request])
    genuine = write_join_request(SECOND, plan, SigningKey.generate(), old_key=own).decode()
    stolen = write_join_request(SECOND, plan, thief, old_key=own).decode()
    signature = stolen.split('signature_by_old_key = "')[1]
    request.write_text(genuine.split("signature_by_old_key")[0] + f'signature_by_old_key = "{signature}')
    with pytest.raises(ConfigError, match="new-key"):
        propose(federation, [request])
    request.write_bytes(write_join_request(SiloId("silo-9"), plan, thief, old_key=own))
    with pytest.raises(ConfigError, match="not in the roster"):
        propose(federation, [request])
    # Nor in a change that the coordinator makes itself, with a voucher for somebody else's key.
    asked = CoordinatorFiles.open(federation.coordinator).candidates([_written(federation)])[0]
    rosters = rosters_of(federation.coordinator)
    members = [each for each in rosters.current.members if each.silo != SECOND] + [member("silo-2", thief)]
    change = forged_change(federation, rosters, members, OTHERS)
    assert asked.voucher is not None
    with pytest.raises(BadSignature):
        rosters.follow(msgspec.structs.replace(change, vouchers=(asked.voucher,)))


@pytest.mark.claim("C16")
def test_a_silo_whose_key_was_stolen_refuses_the_roster_that_gives_its_name_to_the_thief(
    federation: SmallFederation, tmp_path: Path
) -> None:
    """With a voucher by the stolen key, and a quorum that did not ask: the others follow, the true one does not."""
    thief, request, path = SigningKey.generate(), tmp_path / "request.toml", federation.silos[SECOND]
    request.write_bytes(write_join_request(SECOND, federation.plan, thief, old_key=key_of(path)))
    propose(federation, [request])
    confirm(federation, OTHERS)
    bring_the_change_to_all(federation)
    assert rosters_of(federation.silos[SiloId("silo-1")]).current.epoch == 2
    assert rosters_of(path).current.epoch == 1


def _written(federation: SmallFederation) -> Path:
    return ask_for_new_key(SiloFiles.open(federation.silos[SECOND]))[0]


def test_asking_again_writes_the_key_again_before_the_request(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last sync may have failed: a loss of power would take a key that the next roster names."""
    files = SiloFiles.open(federation.silos[SECOND])
    first, written = ask_for_new_key(files), list[str]()
    genuine = StateDir.write

    def recording(self: StateDir, relative: str, content: bytes, *, private: bool = False) -> None:
        written.append(relative)
        genuine(self, relative, content, private=private)

    monkeypatch.setattr(StateDir, "write", recording)
    assert ask_for_new_key(files) == first
    assert written == ["keys/next-signing.key", ROTATE_FILE]


def test_asking_twice_asks_for_the_same_key_and_after_the_change_for_another(
    federation: SmallFederation,
) -> None:
    files = SiloFiles.open(federation.silos[SECOND])
    assert ask_for_new_key(files) == ask_for_new_key(files)
    mark = ask(federation)
    run(federation)
    assert ask_for_new_key(files)[1] != mark
    assert (files.state.root / ROTATE_FILE).exists()


@pytest.mark.claim("C16", "C17")
def test_killed_at_any_write_while_it_follows_a_silo_starts_with_one_key_everywhere(
    federation: SmallFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write between the change on disk and the first word under the new key, one after another."""
    path, mark = federation.silos[SECOND], ask(federation)
    write, append, remove = StateDir.write, append_only.append, StateDir.remove
    left = [0]

    def moment(root: Path) -> None:
        if root == path and (path / "rosters/0002.bin").exists():
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    def killing_write(self: StateDir, name: str, content: bytes, *, private: bool = False) -> None:
        moment(self.root)
        write(self, name, content, private=private)
        moment(self.root)

    def killing_remove(self: StateDir, name: str) -> None:
        moment(self.root)
        remove(self, name)
        moment(self.root)

    def killing_append(file: Path, line: bytes, *, size: int) -> None:
        moment(file.parent.parent)
        append(file, line, size=size)
        moment(file.parent.parent)

    at, died = 0, True
    while died:
        at += 1
        copy = copied(federation, tmp_path / f"at-{at}")
        path, left[0] = copy.silos[SECOND], at
        with monkeypatch.context() as killing:
            killing.setattr(StateDir, "write", killing_write)
            killing.setattr(StateDir, "remove", killing_remove)
            killing.setattr(append_only, "append", killing_append)
            bring_the_change_to_all(copy)
        died = left[0] <= 0
        files = SiloFiles.open(path)
        with files.ledger() as ledger:
            assert ledger.spends
        assert fingerprint(key_of(path).public_key) == mark, at
        assert (path / LEDGER_FILE).read_text().count('"kind":"rotate_key"') == 1, at
        run(copy)
        assert SECOND in chain_of(copy).verified[-1].record.survivors, at
    assert at > 10


def bring_the_change_to_all(federation: SmallFederation) -> None:
    """Whoever is killed on the way is started again."""
    files = CoordinatorFiles.open(federation.coordinator)
    silos = {silo: Silo(each) for silo, each in federation.silos.items()}
    channel = Channel(silos, federation.coordinator, Killer(federation.coordinator))
    CoordinatorService(files.state, files.chain(), channel).synchronise(Attendance())
    for silo in silos.values():
        silo.die()

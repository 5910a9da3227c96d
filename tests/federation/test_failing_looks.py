"""A disk that does not answer is not a disk that says no: what protects must not rest on a failed look."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cachefl_secure import durable
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation import letters
from cachefl_secure.federation.countersigning import countersign
from cachefl_secure.federation.enrolment import read_roster, sign_roster
from cachefl_secure.federation.letters import Sync
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir, round_numbers
from cachefl_secure.names import SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.messages import Member, roster_digest
from tests.driven import Driven, driven
from tests.simulation.disk import ROOT, Killed, SimDisk
from tests.small_federation import found

FAILURES = (errno.EIO, errno.ESTALE, errno.EACCES)


def blind(patch: pytest.MonkeyPatch, path: Path, number: int, times: int = 1) -> list[str]:
    """The next looks at this path fail; what did is in the list."""
    real, failed = os.stat, list[str]()

    def stat(asked: Any, *rest: Any, **options: Any) -> os.stat_result:
        if str(asked) == str(path) and len(failed) < times:
            failed.append(str(path))
            raise OSError(number, os.strerror(number), str(asked))
        return real(asked, *rest, **options)

    patch.setattr(os, "stat", stat)
    return failed


@pytest.mark.claim("C3")
@pytest.mark.parametrize("number", FAILURES)
def test_one_failing_look_at_the_note_of_a_release_does_not_let_that_update_into_another_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Four silos, silo-4 colludes. If silo-2 entered, two sums would open that differ by silo-1's update."""
    federation = found(tmp_path, records=(12, 20, 9, 15))
    with driven(federation) as services:
        session, certificates = services.certify(services.manifest(2, 1, services.silos))
        asked = {silo: certificates[silo] for silo in map(SiloId, ("silo-1", "silo-2", "silo-4"))}
        session.on_unmask_shares(services.exchange(letters.UNMASK, asked))  # one sum is open
        released = "rounds/0002/released"
        (federation.silos[SiloId("silo-4")] / released).unlink()  # the colluder forgets
        again = services.manifest(2, 2, map(SiloId, ("silo-2", "silo-3", "silo-4")))
        opening = services.session(again).manifest_message()
        failed = blind(monkeypatch, federation.silos[SiloId("silo-2")] / released, number)
        assert services.ask(SiloId("silo-2"), letters.MANIFEST, opening) == "storage-failed"
        assert failed
        assert services.ask(SiloId("silo-2"), letters.MANIFEST, opening) == "update-already-released"


@pytest.mark.claim("C3", "C4")
@pytest.mark.parametrize("name", ["released", "sent", "attempt", "certified"])
def test_a_silo_that_cannot_look_at_its_notes_of_a_round_enters_no_attempt_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    federation = found(tmp_path)
    with driven(federation) as services:
        services.certify(services.manifest(2, 1, services.silos))
        again, victim = services.manifest(2, 2, services.silos), services.silos[-1]
        failed = blind(monkeypatch, federation.silos[victim] / "rounds/0002" / name, errno.EIO)
        assert services.propose(again) == "storage-failed"
        assert failed
        assert isinstance(services.propose(again), bytes)  # nothing was released: the control


def sybils(services: Driven, victim: SiloId) -> tuple[bytes, tuple[letters.Countersignature, ...]]:
    """A roster in which all but the victim are the coordinator's own keys, with all their signatures."""
    told = read_roster(services.files.state, services.federation.plan)
    keys = {silo: SigningKey.generate() for silo in services.silos if silo != victim}
    keys[victim] = StateDir(services.federation.silos[victim]).signing_key()
    members = tuple(Member(silo, keys[silo].public_key) for silo in services.silos)
    forged = msgspec.structs.replace(told, members=members)
    return sign_roster(forged, services.key), tuple(countersign(forged, s, k) for s, k in keys.items())


@pytest.mark.claim("C16")
def test_a_silo_whose_pinned_roster_cannot_be_looked_at_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driven(found(tmp_path)) as services:
        victim = services.silos[0]
        failed = blind(monkeypatch, services.federation.silos[victim] / ROSTER_FILE, errno.EIO)
        with pytest.raises(ConfigError, match="error"):
            services.restart(victim)
        assert failed
        services.start(victim)


@pytest.mark.claim("C16")
@pytest.mark.parametrize("kept", ["rounds", "countersignatures.bin"])
def test_a_silo_whose_roster_file_is_gone_pins_no_other_than_its_countersignatures_and_records_are_of(
    tmp_path: Path, kept: str
) -> None:
    """A roster of Sybils, countersigned by them all: nobody but the disk stands in its way."""
    with driven(found(tmp_path)) as services:
        victim = services.silos[0]
        root = services.federation.silos[victim]
        genuine = (root / ROSTER_FILE).read_bytes()
        (root / ROSTER_FILE).unlink()
        (root / "countersignatures.bin" if kept == "rounds" else root / "rounds/0001/record.json").unlink()
        services.restart(victim)
        roster, signatures = sybils(services, victim)
        refused = services.ask(victim, letters.SYNC, wire.encode(Sync(roster, b"", (), signatures)))
        assert refused in ("storage-failed", "record-rejected")
        assert not (root / ROSTER_FILE).exists()
        assert isinstance(services.ask(victim, letters.SYNC, wire.encode(Sync(genuine, b"", ()))), bytes)
        files = SiloFiles.open(root)
        assert roster_digest(read_roster(files.state, files.plan)) == roster_digest(
            services.files.chain().roster
        )


def test_what_is_decided_for_ever_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDir(tmp_path)
    state.write_once("decided", b"first")
    with pytest.raises(ConfigError, match="never replaced"):
        state.write_once("decided", b"second")
    blind(monkeypatch, tmp_path / "decided", errno.EIO)
    with pytest.raises(ConfigError, match="error"):
        state.write_once("decided", b"second")
    assert state.read("decided") == b"first"


@pytest.mark.parametrize("number", FAILURES)
def test_only_a_file_that_is_certainly_not_there_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    state = StateDir(tmp_path)
    state.write("file", b"")
    assert state.has("file")
    assert not state.has("other")
    assert not state.has("file/below")
    assert not state.has("other/below")
    blind(monkeypatch, tmp_path / "file", number, times=2)
    with pytest.raises(OSError, match=os.strerror(number)):
        durable.is_file(tmp_path / "file")
    with pytest.raises(ConfigError, match=os.strerror(number)):
        state.has("file")


@pytest.mark.claim("C17")
def test_a_folder_whose_sync_failed_is_synced_before_anything_is_put_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a later loss of power may take the folder away, and all that was durable in it."""
    state, synced = StateDir(tmp_path), list[Path]()

    def fail(folder: durable.AnyPath) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_folder", fail)
        with pytest.raises(ConfigError, match="Input/output"):
            state.write("rounds/0001/released", b"")
    assert (tmp_path / "rounds").is_dir()
    monkeypatch.setattr(durable, "sync_folder", lambda folder: synced.append(Path(folder)))
    state.write("rounds/0001/released", b"")
    assert synced == [tmp_path, tmp_path / "rounds", tmp_path / "rounds/0001"]
    synced.clear()
    state.write(
        "rounds/0001/released", b""
    )  # by another process than the one that made the folder, for all it knows
    assert synced == [tmp_path / "rounds", tmp_path / "rounds/0001"]


@pytest.mark.claim("C17")
@pytest.mark.parametrize("look", ["read", "has"])
def test_what_a_killed_process_left_is_safe_once_it_was_looked_at(
    look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a soak: a session's new name was not synced, the next process answered from it, and power went."""
    left = set[bytes]()
    for seed in range(40):
        disk = SimDisk.holding({"silo/session": (b"old", 0o600)}, random.Random(seed))
        with monkeypatch.context() as patch:
            disk.install(patch)
            disk.kill_at = ("silo", 5)  # made, written, synced, renamed: and now the folder
            with pytest.raises(Killed):
                StateDir(Path(ROOT) / "silo").write("session", b"new")
            disk.kill_at, after = None, StateDir(Path(ROOT) / "silo")
            disk.dying.clear()
            if seed % 2:
                assert after.read("session") == b"new" if look == "read" else after.has("session")
            disk.lose_power("silo")
            content = StateDir(Path(ROOT) / "silo").read("session")
            if seed % 2:
                assert content == b"new"
            left.add(content)
    assert left == {b"old", b"new"}


def test_the_rounds_that_are_seen_are_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(20):
        disk = SimDisk.holding({"silo/rounds/0001/attempt": (b"1", 0o600)}, random.Random(seed))
        with monkeypatch.context() as patch:
            disk.install(patch)
            disk.kill_at = ("silo", 3)  # the folder is made, and its name not synced
            with pytest.raises(Killed):
                StateDir(Path(ROOT) / "silo").write("rounds/0002/attempt", b"1")
            disk.kill_at = None
            disk.dying.clear()
            assert round_numbers(StateDir(Path(ROOT) / "silo")) == [1, 2]
            disk.lose_power("silo")
            assert round_numbers(StateDir(Path(ROOT) / "silo")) == [1, 2]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("failing", ["replace_file", "make_folders"])
def test_a_folder_is_synced_once_and_again_after_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if relative:
        tmp_path = Path()
    StateDir(tmp_path).write("rounds/0001/released", b"")
    synced, genuine = list[str](), durable.sync_folder

    def sync_folder(folder: durable.AnyPath) -> None:
        synced.append(str(folder))
        genuine(folder)

    monkeypatch.setattr(durable, "sync_folder", sync_folder)
    state = StateDir(tmp_path)
    for _ in range(2):
        assert state.has("rounds/0001/released")
        assert state.read("rounds/0001/released") == b""
    assert synced == [f"{tmp_path}/rounds/0001"]
    assert round_numbers(state) == [1]
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(durable, failing, refuse)
        with pytest.raises(ConfigError, match="Input/output"):
            state.write("rounds/0001/released", b"other")
    synced.clear()
    assert state.has("rounds/0001/released")
    assert round_numbers(state) == [1]
    assert synced == [f"{tmp_path}/rounds/0001", f"{tmp_path}/rounds"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS, errno.EIO])
def test_where_folders_cannot_be_synced_an_auditor_still_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    StateDir(tmp_path).write("record", b"content")

    def fail(folder: durable.AnyPath) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, "sync_folder", fail)
    if number in (errno.EIO, errno.EROFS):
        with pytest.raises(ConfigError, match=os.strerror(number)):
            StateDir(tmp_path).read("record")
    else:
        assert StateDir(tmp_path).read("record") == b"content"

"""What fails around processes that are sound: the store, the disk, clocks, time, the network."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefl_secure.errors import TransportError
from cachefl_secure.federation.silo_files import LEDGER_FILE
from cachefl_secure.names import SiloId
from cachefl_secure.transport.store import ObjectStore
from tests.party import Faults
from tests.processes import Stage, stage, until

pytestmark = pytest.mark.slow
TEN_YEARS_DAYS = 3652


def test_a_store_that_is_away_for_a_while_costs_no_silo_and_is_not_made_anew(tmp_path: Path) -> None:
    """As when a share is unmounted: what is written meanwhile must not go to a folder beside it.

    One silo is killed meanwhile and started again, as by a machine that comes up before its shares do.
    """
    with stage(tmp_path) as play:
        play.serve()
        coordinator, gate = play.held_round("masked-input:before")
        away = play.store.rename(tmp_path / "away")
        gate.touch()
        play.serving[SiloId("silo-1")].kill()
        play.serve("silo-1")
        for silo in play.silos:
            play.until_said(silo, "the store cannot be reached, trying again")
        until(lambda: "(masked-input, " in coordinator.said, "the coordinator waits")
        assert not play.store.exists()
        away.rename(play.store)
        assert coordinator.result()["rounds"][0]["survivors"] == play.silos
        for silo in play.silos:
            play.until_said(silo, "the store is back")
        play.kill_all()
        play.check_no_second_reply()
        assert play.charges() == dict.fromkeys(play.silos, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
        mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_store_that_is_full_for_a_while_costs_no_silo(tmp_path: Path, small_disk: Path) -> None:
    """A silo has trained and cannot hand over its masked input; then somebody makes room."""
    with stage(tmp_path, store=small_disk / "store") as play:
        gate = play.paths.gate("silo-1")
        play.serve("silo-2", "silo-3", "silo-4")
        play.serve("silo-1", faults=Faults(hold_at="masked-input:after", gate=gate, comes_back=True))
        coordinator = play.round()
        until(gate.with_suffix(".reached").exists, "silo-1 has trained")
        until(lambda: len([*play.store.rglob("from/*/silo-[234]")]) == 3, "the others have answered")
        filler = small_disk / "filler"
        _fill(filler)
        gate.touch()
        play.until_said("silo-1", os.strerror(errno.ENOSPC))
        filler.unlink()
        assert coordinator.result()["rounds"][0]["survivors"] == play.silos
        assert not [*play.store.rglob(".part-*")]
        play.kill_all()
        play.check_no_second_reply()
        assert play.charges() == dict.fromkeys(play.silos, 1)


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))


def test_a_refused_write_is_an_error_of_the_transport_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore.open(f"dir://{tmp_path}")
    store.put("a/1", b"before")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TransportError, match="No space left"):
        store.put("a/1", b"after")
    assert store.get("a/1", limit_bytes=10) == b"before"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["1"]


def test_a_store_whose_folder_is_missing_is_away_and_not_empty(tmp_path: Path) -> None:
    store = ObjectStore.open(f"dir://{tmp_path / 'share'}")
    for attempt in (
        lambda: store.names("a"),
        lambda: store.folders("a"),
        lambda: store.get("a/1", limit_bytes=1),
        lambda: store.has("a/1"),
        lambda: store.put("a/1", b""),
    ):
        with pytest.raises(TransportError):
            attempt()
    assert not (tmp_path / "share").exists()
    store.make()
    assert store.names("a") == []


def test_clocks_that_are_ten_years_off_change_nothing_but_what_people_read(tmp_path: Path) -> None:
    with stage(tmp_path) as play:
        play.serve("silo-1", "silo-2")
        play.serve("silo-3", faults=Faults(clock_days=TEN_YEARS_DAYS))
        play.serve("silo-4", faults=Faults(clock_days=-TEN_YEARS_DAYS))
        early = play.round(faults=Faults(clock_days=-TEN_YEARS_DAYS))
        assert early.result()["rounds"][0]["survivors"] == play.silos
        late = play.round(faults=Faults(clock_days=TEN_YEARS_DAYS))
        assert late.result()["rounds"][0]["survivors"] == play.silos
        play.kill_all()
        assert len(play.records()) == 2
        assert play.charges() == dict.fromkeys(play.silos, 2)
        now = _year(play, "silo-1")
        assert (_year(play, "silo-3"), _year(play, "silo-4")) == (now + 10, now - 10)


def _year(play: Stage, silo: str) -> int:
    last = (play.federation.silos[SiloId(silo)] / LEDGER_FILE).read_text().splitlines()[-1]
    found = re.search(r'"time"\W+([0-9]{4})-', last)
    assert found is not None, last
    return int(found[1])


@pytest.mark.parametrize("how", ["slow", "asleep"])
def test_a_silo_too_late_for_one_round_is_counted_in_the_next(tmp_path: Path, how: str) -> None:
    """It trains for longer than the deadline, or its machine sleeps, and nobody notices but the round it was in."""
    with stage(tmp_path) as play:
        gate = play.paths.gate("silo-1")
        play.serve("silo-2", "silo-3", "silo-4")
        play.serve("silo-1", faults=Faults(hold_at="masked-input:before", gate=gate))
        coordinator = play.round()
        until(gate.with_suffix(".reached").exists, "silo-1 is about to train")
        pid = play.serving[SiloId("silo-1")].process.pid
        if how == "asleep":
            os.kill(pid, signal.SIGSTOP)
        assert coordinator.result()["rounds"][0]["survivors"] == ["silo-2", "silo-3", "silo-4"]
        gate.touch()
        if how == "asleep":
            play.paths.silent("silo-1").unlink()
            os.kill(pid, signal.SIGCONT)
        play.until_said("silo-1", "trained, noised and masked; the update is on its way")
        assert play.play_round()["survivors"] == play.silos
        assert not [*play.store.rglob("from/*/*"), *play.store.rglob("to/*/*")]  # the late answer is gone too
        play.kill_all()
        play.check_no_second_reply()
        assert [len(record.survivors) for record in play.records()] == [3, 4]
        assert play.charges() == dict.fromkeys(play.silos, 2)  # nothing is refunded


def test_a_silo_that_is_told_to_end_finishes_its_answer_first(tmp_path: Path) -> None:
    with stage(tmp_path) as play:
        gate = play.paths.gate("silo-1")
        play.serve("silo-2", "silo-3", "silo-4")
        play.serve("silo-1", faults=Faults(hold_at="masked-input:before", gate=gate, comes_back=True))
        coordinator, ending = play.round(), play.serving[SiloId("silo-1")]
        until(gate.with_suffix(".reached").exists, "silo-1 is about to train")
        os.kill(ending.process.pid, signal.SIGTERM)
        gate.touch()
        assert ending.end() == 0
        assert "trained, noised and masked; the update is on its way" in ending.said
        assert ending.said.endswith("ended\n")
        play.serve("silo-1")
        assert coordinator.result()["rounds"][0]["survivors"] == play.silos
        play.kill_all()
        play.check_no_second_reply()
        assert play.charges() == dict.fromkeys(play.silos, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, -signal.SIGHUP)])
def test_a_round_that_is_interrupted_at_the_coordinator_goes_on_at_no_further_charge(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C, and a terminal that is closed."""
    with stage(tmp_path) as play:
        play.serve()
        interrupted, _ = play.held_round("certificate:before")  # all have trained and sent
        os.kill(interrupted.process.pid, number)
        assert interrupted.end() == code, interrupted.said
        (outcome,) = play.round("--resume").result()["rounds"]
        assert (outcome["round"], outcome["attempt"], outcome["survivors"]) == (1, 2, play.silos)
        play.kill_all()
        play.check_no_second_reply()
        assert play.charges() == dict.fromkeys(play.silos, 1)


@pytest.mark.claim("C10")
def test_a_silo_restored_from_a_backup_is_left_out_and_its_operator_told(tmp_path: Path) -> None:
    """Its charge of round 2 is gone from its disk, and stands in a receipt that it signed."""
    with stage(tmp_path) as play:
        silo = SiloId("silo-1")
        path, backup = play.federation.silos[silo], tmp_path / "backup"
        play.serve()
        assert play.play_round()["survivors"] == play.silos
        play.kill(silo)
        shutil.copytree(path, backup)
        play.serve(silo)
        assert play.play_round()["survivors"] == play.silos
        play.kill(silo)
        shutil.rmtree(path)
        backup.rename(path)
        play.serve(silo)
        third = play.play_round()
        assert (third["survivors"], third["declined"]) == (play.silos[1:], {silo: "ledger-rolled-back"})
        play.until_said(silo, "does not extend the witnessed")
        play.kill_all()
        assert [len(record.survivors) for record in play.records()] == [4, 4, 3]
        assert play.charges() == dict.fromkeys(play.silos, 3) | {silo: 1}


def test_a_round_over_a_folder_needs_no_network(tmp_path: Path) -> None:
    """Every party but one silo is in a network namespace of its own, which is empty."""
    with stage(tmp_path) as play, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        alone = Faults(own_network=True, listener=port)
        trial = play.start("--version", faults=alone)
        if trial.end():
            pytest.skip(f"no process may have a network of its own here: {trial.said.splitlines()[-1]}")
        play.serve("silo-1", "silo-2", "silo-3", faults=alone)
        play.serve("silo-4", faults=Faults(listener=port))
        coordinator = play.round(faults=alone)
        assert coordinator.result()["rounds"][0]["survivors"] == play.silos
        for party in (coordinator, *(play.serving[SiloId(silo)] for silo in ("silo-1", "silo-2", "silo-3"))):
            assert "there is no network" in party.said
        assert "the network answers" in play.serving[SiloId("silo-4")].said

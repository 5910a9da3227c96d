"""The fault matrix through the engines: what is left of it for FLARE, and where the rest is.

| row | fault | over FLARE | over a mailbox |
|---|---|---|---|
| F01 | a silo killed in every phase | ``test_flare_killed``: its job's process in four phases, its machine in two | ``test_killed_silos``: six phases, four points in each |
| F02 | the coordinator killed in every phase | ``test_flare_killed``: FLARE's server, the job's process or the machine, in four phases, twice with a silo | ``test_killed_coordinators``: twelve points, and with a silo in five phases |
| F18 | two commands for one silo | here | ``test_operators`` |
| F19 | two rounds at once, a lock after a crash | here; ``test_flare_killed`` goes on after kill -9 | ``test_operators``, ``test_killed_coordinators`` |
| F36 | signals, sleep | here: SIGTERM at a silo, SIGINT at the coordinator, SIGSTOP of a silo's machine; ``test_flare``: SIGTERM, SIGINT and SIGKILL leave no process | ``test_failing_surroundings``: SIGTERM and SIGSTOP at a silo, SIGINT and SIGHUP at the coordinator |
| F38 | server or client of the engine restarted | ``test_flare_killed``; ``test_flare`` | ``test_failing_surroundings``: a store that is away; there is no server of ours |
| F38 | certificates end | ``test_flare_certificates`` | none in a folder; https of other stores is fsspec's |
| F38 | messages beyond a limit of gRPC (4 MiB) | ``test_flare_killed``: 64 MiB each way | ``test_mailbox_outlasts``: the same |
| F38 | a task delivered twice | ``test_flare_killed``: every message of a round | ``test_mailbox``: a request that comes back; ``test_tampered_store`` |
| F39 | versions drift, hashes are missing, no network | ``test_flare_kits``: another version of FLARE is refused; ``test_lock`` | ``test_store``: extras are named; ``test_lock``; ``test_failing_surroundings``: no network |
| F40 | a silo that is too slow | here; ``test_flare_hosts``: cut off in a round | ``test_failing_surroundings`` |
| F41 | a silo restored from a backup | here | ``test_failing_surroundings`` |
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from cachefl_secure.names import SiloId
from tests.transport.at_flare import NEEDS_FLARE, flare_stage, power_cut, tree, wait_until_gone

pytestmark = NEEDS_FLARE
IN_USE = "another cachefl-secure process works here"


@pytest.mark.claim("C9", "C18")
def test_second_commands_are_refused_and_those_that_are_told_to_end_leave_nothing_behind(
    tmp_path: Path,
) -> None:
    with flare_stage(tmp_path) as play:
        play.serve()
        first, gate = play.held_round("share:before")
        again = play.start("round", play.federation.coordinator)
        twice = play.start(
            "join", play.federation.coordinator / "invite.toml", play.federation.silos[SiloId("silo-1")]
        )
        for second in (again, twice):
            assert second.end() == 7
            assert IN_USE in second.said
        ending = play.serving.pop(SiloId("silo-4"))
        everything = tree(ending.process.pid)
        os.kill(ending.process.pid, signal.SIGTERM)
        assert ending.end() == 0
        assert ending.said.endswith("ended\n")
        wait_until_gone(everything)
        play.paths.silent(SiloId("silo-4")).touch()
        gate.touch()
        others = play.silos[:-1]
        assert first.result()["rounds"][0]["survivors"] == others

        play.serve("silo-4")
        interrupted, _ = play.held_round("masked-input:before")
        everything = tree(interrupted.process.pid)
        os.kill(interrupted.process.pid, signal.SIGINT)
        assert interrupted.end() == 130
        wait_until_gone(everything)
        (outcome,) = play.round("--resume").result()["rounds"]
        assert (outcome["round"], outcome["attempt"], outcome["survivors"]) == (2, 2, play.silos)
        play.kill_everything()
        play.check_no_second_reply()
        assert [record.attempt for record in play.records()] == [1, 2]
        assert play.charges() == dict.fromkeys(others, 2) | {SiloId("silo-4"): 1}


@pytest.mark.claim("C6", "C10")
def test_a_silo_that_sleeps_is_dropped_and_comes_back_and_one_from_a_backup_is_refused(
    tmp_path: Path,
) -> None:
    with flare_stage(tmp_path) as play:
        sleeper, restored = SiloId("silo-1"), SiloId("silo-2")
        play.serve()
        assert play.play_round()["survivors"] == play.silos
        play.kill(restored)
        path, backup = play.federation.silos[restored], tmp_path / "backup"
        shutil.copytree(path, backup)
        play.serve(restored)

        gate = play.hold(sleeper, "masked-input:before")
        coordinator = play.round()
        play.until(gate.with_suffix(".reached").exists, "silo-1 is about to train")
        asleep = tree(play.serving[sleeper].process.pid)
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        assert coordinator.result()["rounds"][0]["survivors"] == play.silos[1:]

        power_cut(play.serving.pop(restored))
        shutil.rmtree(path)
        backup.rename(path)
        play.serve(restored)
        play.wake(sleeper, asleep)
        third = play.play_round()
        assert third["survivors"] == [silo for silo in play.silos if silo != restored]
        assert third["declined"] == {restored: "ledger-rolled-back"}
        play.until_said(restored, "does not extend the witnessed")
        play.kill_everything()
        assert [len(record.survivors) for record in play.records()] == [4, 3, 3]
        assert play.charges() == dict.fromkeys(play.silos, 3) | {sleeper: 2, restored: 1}

"""Kill -9 of FLARE's server, of the coordinator's machine and of silos, in the middle of rounds over FLARE.

The invariants are those of every transport: a sum holds each survivor's update once, a round is charged once,
and no silo answers one message in two ways.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from cachefl_secure.federation import letters
from cachefl_secure.federation.inspection import audit_coordinator, audit_silo
from cachefl_secure.names import SiloId
from tests.inside_flare import notes_of, place_faults
from tests.party import Faults
from tests.transport.at_flare import NEEDS_FLARE, FlareStage, flare_stage, kill_all, power_cut

pytestmark = NEEDS_FLARE
ENGINE_FAILED = 8
BEFORE_A_ROUND = {letters.HELLO, letters.SYNC}
OF_A_ROUND = {letters.MANIFEST, letters.SHARE, letters.MASKED_INPUT, letters.CERTIFICATE, letters.UNMASK}


def check_invariants(play: FlareStage, rounds: Sequence[int], charges: dict[SiloId, int]) -> None:
    play.check_no_second_reply()
    assert [len(record.survivors) for record in play.records()] == list(rounds)
    assert play.charges() == charges
    assert audit_coordinator(play.federation.coordinator).steps
    for path in play.federation.silos.values():
        assert audit_silo(path, {}).steps


@pytest.mark.claim("C3", "C6", "C9")
def test_a_server_and_a_silo_killed_in_a_round_and_all_that_was_sent_before_sent_again(
    tmp_path: Path,
) -> None:
    """Round 1; an attempt of round 2 up to its masked inputs, where FLARE's server and a silo are killed; and its
    next attempt, in which the coordinator is hostile: before each message it sends all of round 1 and of that
    attempt again, and every message of its own twice. The other silos' processes are those of the beginning.
    """
    with flare_stage(tmp_path) as play:
        play.serve()
        clients = [play.serving[silo] for silo in play.silos[1:]]
        assert play.play_round()["survivors"] == play.silos
        coordinator, _ = play.held_round("masked-input:after")
        kill_all(play.flare_of(coordinator))
        play.kill("silo-1")
        assert coordinator.end() == ENGINE_FAILED
        assert "ended by SIGKILL; its log says why" in coordinator.said
        play.serve("silo-1")
        play.paths.requests.rename(play.paths.replayed)
        (outcome,) = play.round("--resume").result()["rounds"]
        assert (outcome["round"], outcome["attempt"], outcome["survivors"]) == (2, 2, play.silos)
        play.kill_everything()
        check_invariants(play, [4, 4], dict.fromkeys(play.silos, 2))
        for client in clients:
            assert "; again in" not in client.said, "FLARE's client was never started again"
        old = list(notes_of(play.paths, "old"))
        assert {note["phase"] for note in old} == BEFORE_A_ROUND | OF_A_ROUND
        for note in old:
            # Until they hear of another attempt silos answer the last one again, with the same bytes.
            if note["phase"] in OF_A_ROUND and note["during"] != letters.MANIFEST:
                assert note["declined"] is not None, note
        twice = list(notes_of(play.paths, "twice"))
        assert {note["phase"] for note in twice} == OF_A_ROUND
        assert all(note["is_same"] for note in twice)
        (large,) = notes_of(play.paths, "large")
        assert large["is_turned"], "64 MiB each way"


@pytest.mark.claim("C3", "C6", "C9")
def test_a_coordinators_machine_that_dies_again_and_again_ends_its_round_at_one_charge(
    tmp_path: Path,
) -> None:
    """Before the certificate the next attempt begins; after it the same one is finished."""
    with flare_stage(tmp_path) as play:
        play.serve()
        held, _ = play.held_round("share:after")
        power_cut(held)
        held = play.held_round("unmask:after", "--resume")[0]
        kill_all(play.job_of(held))  # FLARE's server lives, and says that its job is gone
        assert held.end() == ENGINE_FAILED, held.said
        held = play.held_round("record:before", "--resume")[0]
        power_cut(held)
        play.kill("silo-2")
        play.serve("silo-2")
        (outcome,) = play.round("--resume").result()["rounds"]
        assert (outcome["round"], outcome["attempt"], outcome["survivors"]) == (1, 2, play.silos)
        last = play.round("--resume")
        assert last.result()["rounds"] == []
        assert "no round was interrupted" in last.said
        play.kill_everything()
        check_invariants(play, [4], dict.fromkeys(play.silos, 1))


@pytest.mark.claim("C6", "C9")
def test_a_job_process_killed_at_a_silo_costs_the_round_that_silo_at_most(tmp_path: Path) -> None:
    """One in each of four rounds, in another phase; FLARE's client lives, and starts a new one for the next job."""
    deaths = ["share:before", "masked-input:during", "certificate:before", "unmask:before"]
    missing = [{"silo-1"}, {"silo-2"}, set[str](), set[str]()]  # a masked input that arrived is in the sum
    with flare_stage(tmp_path) as play:
        play.serve()
        for silo, point, dropped in zip(play.silos, deaths, missing, strict=True):
            place_faults(play.paths, silo, Faults(die_at=point))
            assert play.play_round()["survivors"] == [each for each in play.silos if each not in dropped]
            play.paths.silent(silo).unlink()  # it was there: the process died
            assert not play.paths.faults(silo).exists()
        play.kill_everything()
        # silo-2 was killed between its charge and its training: nothing is refunded.
        check_invariants(play, [3, 3, 4, 4], dict.fromkeys(play.silos, 4) | {SiloId("silo-1"): 3})


@pytest.mark.parametrize("code", ["EXCEPTION", "CONFIG_ERROR", "INFRASTRUCTURE_ERROR", "UNSAFE_COMPONENT"])
def test_a_sites_word_that_its_part_failed_ends_the_job_for_nobody_else(
    monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """As FLARE has it, it ends for all; that is tried first."""
    from nvflare.fuel.common.exit_codes import ProcessExitCode
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
    from nvflare.private.defs import CellMessageHeaderKeys, JobFailureMsgKey, new_cell_message
    from nvflare.private.fed.server.fed_server import FederatedServer

    from cachefl_secure.transport.flare.running import let_no_site_end_a_job

    def done() -> list[str]:
        calls: list[str] = []
        runner = SimpleNamespace(
            is_client_outcome_pending=lambda *_: True,
            fail_run=lambda *_: calls.append("ended for all"),
            stop_run=lambda *_: calls.append("ended for all"),
            resolve_client_outcome=lambda *_: calls.append("its part ended"),
        )
        server = SimpleNamespace(
            logger=logging.getLogger("silent"),
            client_manager=SimpleNamespace(
                is_from_authorized_client=lambda token: token == "t",
                clients={"t": SimpleNamespace(name="silo-1")},
            ),
            engine=SimpleNamespace(job_runner=runner, new_context=lambda: contextlib.nullcontext(None)),
        )
        request = new_cell_message(
            {MessageHeaderKey.ORIGIN: "silo-1", CellMessageHeaderKeys.TOKEN: "t"},
            {JobFailureMsgKey.JOB_ID: "j", JobFailureMsgKey.CODE: getattr(ProcessExitCode, code)},
        )
        FederatedServer.process_job_failure(server, request)
        return calls

    monkeypatch.setattr(FederatedServer, "process_job_failure", FederatedServer.process_job_failure)
    assert done() == ["ended for all", "its part ended"]
    let_no_site_end_a_job()
    assert done() == ["its part ended"]

"""kill -9 of the coordinator, alone and together with a silo, at every phase of a round over a mailbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachefl_secure.names import SiloId
from tests.party import Faults
from tests.processes import KILLED, stage

pytestmark = pytest.mark.slow
BEFORE_THE_CERTIFICATE = [
    f"{phase}:{where}"
    for phase in ("manifest", "share", "masked-input", "certificate")
    for where in ("during", "after")
]
AFTER_IT = ["unmask:during", "unmask:after", "record:before", "record:during"]


@pytest.mark.claim("C3", "C6", "C9", "C17")
def test_a_coordinator_killed_in_every_phase_of_one_round_resumes_it_and_no_silo_pays_twice(
    tmp_path: Path,
) -> None:
    """It dies, is started again with --resume, comes a little further, and dies again."""
    with stage(tmp_path) as play:
        play.serve()
        for index, point in enumerate([*BEFORE_THE_CERTIFICATE, *AFTER_IT]):
            died = play.round("--resume" if index else "--number=1", faults=Faults(die_at=point))
            assert died.end() == KILLED, (point, died.said)
            assert play.chain().position.round == 0, point
        died = play.round("--resume", faults=Faults(die_at="record:after"))
        assert died.end() == KILLED, died.said
        last = play.round("--resume")
        assert last.result()["rounds"] == []
        assert "no round was interrupted" in last.said
        for silo in play.silos:
            assert "round 1 of 12 is recorded and verified" in play.serving[silo].said
        play.kill_all()
        play.check_no_second_reply()
        (record,) = play.records()
        # One attempt for each death before the certificate was on disk, and none for those after it.
        assert record.attempt == len(BEFORE_THE_CERTIFICATE) + 1
        assert list(record.survivors) == play.silos
        assert play.charges() == dict.fromkeys(play.silos, 1)


@pytest.mark.claim("C3", "C6", "C9")
def test_coordinator_and_silo_killed_in_the_same_phase_finish_the_round_at_one_charge(tmp_path: Path) -> None:
    """In five phases one after another; the silo is the first that is asked, and so the one that knows of the phase."""
    with stage(tmp_path) as play:
        victim = SiloId("silo-1")
        play.serve(*(silo for silo in play.silos if silo != victim))
        for phase in ("manifest", "share", "masked-input", "certificate", "unmask"):
            play.serve(victim, faults=Faults(die_at=f"{phase}:during"))
            died = play.round(faults=Faults(die_at=f"{phase}:during"))
            assert (died.end(), play.serving[victim].end()) == (KILLED, KILLED), (phase, died.said)
        play.serve(victim)
        (outcome,) = play.round("--resume").result()["rounds"]
        assert outcome["survivors"] == play.silos
        play.kill_all()
        play.check_no_second_reply()
        assert [record.round for record in play.records()] == [1]
        assert play.charges() == dict.fromkeys(play.silos, 1)

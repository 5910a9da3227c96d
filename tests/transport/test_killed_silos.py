"""kill -9 of silos, each a process of its own, at every phase of a round over a mailbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachefl_secure.names import SiloId
from tests.party import Faults
from tests.processes import KILLED, stage

pytestmark = pytest.mark.slow
PHASES = ("manifest", "share", "masked-input", "certificate", "unmask", "record")


@pytest.mark.claim("C6", "C17")
@pytest.mark.parametrize("where", ["before", "during", "torn", "sent"])
def test_silos_killed_in_every_phase_go_on_and_are_counted_once(tmp_path: Path, where: str) -> None:
    """Six silos, each of which is killed in another phase of the same round and started again."""
    with stage(tmp_path, silos=len(PHASES)) as play:
        for silo, phase in zip(play.silos, PHASES, strict=True):
            play.serve(silo, faults=Faults(die_at=f"{phase}:{where}", comes_back=True))
        coordinator = play.round()
        assert sorted(play.revive_until_end(coordinator)) == play.silos
        result = coordinator.result()["rounds"][0]
        # Only between the note that an attempt is entered and its first journal is there nothing to go on from.
        assert not [*play.store.rglob(".part-*")]  # halves of answers are cleared with the others
        dropped = [SiloId("silo-1")] if where == "during" else []
        assert result["survivors"] == [silo for silo in play.silos if silo not in dropped]
        play.kill_all()
        play.check_no_second_reply()
        assert [record.round for record in play.records()] == [1]
        assert play.charges() == {silo: int(silo not in dropped) for silo in play.silos}


@pytest.mark.claim("C6")
def test_a_round_ends_without_the_silos_that_stay_dead_and_charges_them_for_what_they_trained(
    tmp_path: Path,
) -> None:
    """Of seven silos five are needed: two die in each round, in the phases named, and are back for the next."""
    deaths: list[dict[str, str]] = [
        {"silo-1": "manifest:before", "silo-2": "share:before"},
        {"silo-3": "masked-input:during", "silo-4": "certificate:before"},
        {"silo-5": "unmask:before", "silo-6": "record:before"},
    ]
    dropped = [{"silo-1", "silo-2"}, {"silo-3"}, set()]  # a masked input that arrived is in the sum
    with stage(tmp_path, silos=7) as play:
        play.serve()
        for dying, missing in zip(deaths, dropped, strict=True):
            for silo, point in dying.items():
                play.kill(silo)
                play.serve(silo, faults=Faults(die_at=point))
            assert play.play_round()["survivors"] == [silo for silo in play.silos if silo not in missing]
            for silo in dying:
                assert play.serving[SiloId(silo)].end() == KILLED
                play.serve(silo)
        assert play.play_round()["survivors"] == play.silos
        play.kill_all()
        play.check_no_second_reply()
        assert len(play.records()) == 4
        # silo-3 was killed between its charge and its training: nothing is refunded.
        assert play.charges() == dict.fromkeys(play.silos, 4) | {"silo-1": 3, "silo-2": 3}

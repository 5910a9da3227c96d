"""Kill -9 at every durable write and around every reply while a roster changes, one at a time, all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cachefl_secure.errors import ConfigError, RoundAborted
from cachefl_secure.federation import letters
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import CoordinatorService
from cachefl_secure.federation.letters import Reply, Standing
from cachefl_secure.federation.synchronising import Attendance
from cachefl_secure.names import SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.messages import roster_digest
from tests.changing import confirm, copied, newcomer, propose, rosters_of, run, with_silo
from tests.federation.test_crash_points import Channel, Killed, Killer, Silo, killers
from tests.small_federation import SmallFederation, found

__all__ = ["killers"]  # a fixture

FOUR = tuple(SiloId(f"silo-{number}") for number in (1, 2, 3, 4))
NEW = SiloId("silo-6")


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> SmallFederation:
    """Five silos after a round, and a sixth that has written its join request."""
    federation = found(tmp_path_factory.mktemp("founded"), records=(12, 20, 9, 15, 11))
    run(federation)
    newcomer(federation, NEW)
    return federation


def _again(command: object, *arguments: object) -> None:
    """An operator who types a command that was killed once more."""
    assert callable(command)
    for _ in range(2):
        try:
            command(*arguments)
        except Killed:
            continue
        except ConfigError as error:
            if "waits for approvals already" not in error.reason:  # it was done, and could not say so
                raise
        return


def _play(federation: SmallFederation, victim: str, at: int | None, listening: list[Killer]) -> Channel:
    """The fifth goes and a sixth comes, then a round; the victim is killed at its ``at``-th moment."""
    root = federation.coordinator.parent
    killer, everybody = Killer(root / victim, at), with_silo(federation, root / NEW)
    listening[:] = [killer]
    _again(propose, federation, [root / NEW], ["silo-5"])
    for silo in FOUR:
        _again(confirm, federation, [silo])
    silos = {silo: Silo(path) for silo, path in everybody.silos.items()}
    channel = Channel(silos, federation.coordinator, killer)
    for _ in range(3):
        files = CoordinatorFiles.open(federation.coordinator)
        try:
            service, attendance = CoordinatorService(files.state, files.chain(), channel), Attendance()
            ready = service.synchronise(attendance)
            if files.chain().position.round > 1:
                break  # the record was written before the coordinator died
            killer.dead = True  # the moments of a round are those of ``test_crash_points``
            service.finish_round(attendance) or service.run_round(ready, attendance)
            service.synchronise(Attendance())
            break
        except (Killed, RoundAborted):
            continue
    listening.clear()
    for process in silos.values():
        process.die()
    return channel


@pytest.mark.claim("C16", "C17")
@pytest.mark.parametrize(
    "victim",
    [
        "coordinator",
        "silo-2",
        pytest.param("silo-5", marks=pytest.mark.slow),
        pytest.param(NEW, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_the_change_is_made_once_and_the_round_goes_on(
    founded: SmallFederation,
    tmp_path: Path,
    killers: list[Killer],
    victim: str,
) -> None:
    total = _play(copied(founded, tmp_path / "counted"), victim, None, killers).killer.passed
    assert total > (4 if victim == "silo-5" else 12)
    for at in range(1, total + 1):
        copy = copied(founded, tmp_path / f"at-{at}")
        said = _play(copy, victim, at, killers)
        names, root = {*FOUR, NEW}, copy.coordinator.parent
        chain = CoordinatorFiles.open(copy.coordinator).chain()
        rosters, record = chain.rosters, chain.verified[-1].record
        assert (rosters.current.epoch, set(rosters.current.public_keys)) == (2, names), at
        for silo in names:
            assert rosters_of(root / silo).current == rosters.current, (at, silo)
        if victim not in ("silo-5", "coordinator"):  # who dies between the change and the farewell says none
            assert rosters_of(root / "silo-5").current.epoch == 2
        assert record.roster_digest == roster_digest(rosters.current)
        assert set(record.survivors) == names, at
        _check_that_each_approves_one_change(said, at)
        shutil.rmtree(root)


def _check_that_each_approves_one_change(channel: Channel, at: int) -> None:
    approved: dict[SiloId, set[bytes]] = {}
    for (silo, phase, _), replies in channel.replies.items():
        for raw in replies if phase == letters.HELLO else ():
            answer = wire.decode(raw, Reply, limit_bytes=1 << 16, peer=silo).answer
            approval = wire.decode(answer, Standing, limit_bytes=1 << 12, peer=silo).approval
            if approval is not None:
                approved.setdefault(silo, set()).add(approval.signature)
    assert all(len(each) == 1 for each in approved.values()), at
    assert set(approved) == set(FOUR), at

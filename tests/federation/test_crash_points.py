"""Kill -9 at every durable write and around every reply of a round, one at a time, enumerated and not sampled.

A silo or the coordinator dies, is started again from its directory, and the round goes on or is run again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cachefl_secure.errors import RoundAborted
from cachefl_secure.federation import letters
from cachefl_secure.federation.budget import silo_budget
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import CoordinatorService
from cachefl_secure.federation.sealed_update import SealedUpdate
from cachefl_secure.federation.silo_attempt import Trainer
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.federation.synchronising import Attendance
from cachefl_secure.names import SiloId
from cachefl_secure.privacy import append_only
from cachefl_secure.privacy.ledger import Ledger
from cachefl_secure.privacy.mechanism import Mechanism, StatisticsMechanism
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate
from cachefl_secure.updates import NoisedSums, NoisedUpdate, PrivateUpdate
from tests.small_federation import SmallFederation, all_entries, found, one_release

SILOS = 4
VICTIM = SiloId("silo-2")


class Killed(BaseException):
    """What a process does not live to see: not an ``Exception``, so nobody handles it."""


@dataclass
class Killer:
    """Counts the moments at which one party may die, and kills it at the chosen one."""

    root: Path
    at: int | None = None
    passed: int = 0
    dead: bool = False

    def moment(self, root: Path) -> None:
        if root != self.root or self.dead:
            return
        self.passed += 1
        if self.passed == self.at:
            self.dead = True
            raise Killed


@dataclass
class Silo:
    """A silo's process, started again from its directory when it was killed."""

    root: Path
    ledger: Ledger | None = None
    service: SiloService | None = None

    def handle(self, phase: str, content: bytes) -> bytes:
        if self.service is None:
            files = SiloFiles.open(self.root)
            self.ledger = files.ledger()
            self.service = SiloService(files, self.ledger, TOY)
        return self.service.handle(phase, content)

    def die(self) -> None:
        if self.ledger is not None:
            self.ledger.close()  # the system drops a dead process's lock
        self.ledger = self.service = None


@dataclass
class Channel:
    """Asks silos one after another. One that dies is started again and asked again, with the same bytes."""

    silos: dict[SiloId, Silo]
    coordinator: Path
    killer: Killer
    replies: dict[tuple[SiloId, str, bytes], set[bytes]] = field(default_factory=dict)
    """Everything that ever left, by what was asked."""

    def exchange(
        self, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        answers = {}
        self.killer.moment(self.coordinator)
        for silo, content in requests.items():
            for _ in range(2):
                try:
                    self.killer.moment(self.silos[silo].root)
                    reply = self.silos[silo].handle(phase, content)
                    self.replies.setdefault((silo, phase, content), set()).add(reply)
                    self.killer.moment(self.silos[silo].root)
                except Killed:
                    self.silos[silo].die()
                else:
                    answers[silo] = reply
                    break
        self.killer.moment(self.coordinator)
        return answers


def _toy_training(_: object, __: object, mechanism: Mechanism, *___: object) -> NoisedUpdate:
    generator = np.random.default_rng()  # fresh each time, as real noise is
    if isinstance(mechanism, StatisticsMechanism):
        return NoisedSums(generator.integers(-(2**20), 2**20, mechanism.dimension))
    return PrivateUpdate(generator.normal(size=128))


TOY = Trainer(lambda *_: None, _toy_training)


@pytest.fixture(scope="module", params=["local", "statistics"])
def founded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> SmallFederation:
    privacy = one_release() if request.param == "statistics" else None
    return found(tmp_path_factory.mktemp("founded"), records=(12, 20, 9, 15)[:SILOS], privacy=privacy)


@pytest.fixture
def killers(monkeypatch: pytest.MonkeyPatch) -> list[Killer]:
    """Whoever is in the list is asked before and after every durable write of this process."""
    listening: list[Killer] = []
    write, append = StateDir.write, append_only.append

    def moments(root: Path) -> None:
        for killer in listening:
            killer.moment(root)

    def killing_write(self: StateDir, relative: str, content: bytes, *, private: bool = False) -> None:
        moments(self.root)
        write(self, relative, content, private=private)
        moments(self.root)

    def killing_append(path: Path, line: bytes, *, size: int) -> None:
        moments(path.parent.parent)
        append(path, line, size=size)
        moments(path.parent.parent)

    monkeypatch.setattr(StateDir, "write", killing_write)
    monkeypatch.setattr(append_only, "append", killing_append)
    return listening


def _copy(federation: SmallFederation, root: Path) -> SmallFederation:
    shutil.copytree(federation.coordinator.parent, root)
    silos = {silo: root / path.name for silo, path in federation.silos.items()}
    return SmallFederation(root / federation.coordinator.name, silos)


@dataclass
class Played:
    """What came of one run with one death in it."""

    moments: int
    replies: dict[tuple[SiloId, str, bytes], set[bytes]]


def _play(federation: SmallFederation, victim: Path, at: int | None, killers: list[Killer]) -> Played:
    """A round with the victim killed at its ``at``-th moment; run again at most twice, as an operator would."""
    killer = Killer(victim, at)
    killers[:] = [killer]
    channel = Channel(
        {silo: Silo(path) for silo, path in federation.silos.items()}, federation.coordinator, killer
    )
    for _ in range(3):
        state = CoordinatorFiles.open(federation.coordinator)
        try:
            service = CoordinatorService(state.state, state.chain(), channel)
            attendance = Attendance()
            ready = service.synchronise(attendance)
            if state.chain().position.round:
                break  # the record was written before the coordinator died
            service.finish_round(attendance) or service.run_round(ready, attendance)
            service.synchronise(Attendance())
            break
        except (Killed, RoundAborted):
            continue
    killers.clear()
    for silo in channel.silos.values():
        silo.die()
    return Played(killer.passed, channel.replies)


def _moments(founded: SmallFederation, tmp_path: Path, victim: str, killers: list[Killer]) -> int:
    copy = _copy(founded, tmp_path / "counted")
    return _play(copy, copy.coordinator.parent / victim, None, killers).moments


@pytest.mark.claim("C3", "C6", "C9", "C17")
@pytest.mark.parametrize("victim", [VICTIM, "coordinator"])
def test_killed_at_any_write_or_reply_the_round_ends_in_the_exact_sum_and_one_charge(
    founded: SmallFederation,
    tmp_path: Path,
    killers: list[Killer],
    monkeypatch: pytest.MonkeyPatch,
    victim: str,
) -> None:
    masked: dict[str, EncodedUpdate] = {}
    """Every update that was encoded, once, however often."""
    genuine = SealedUpdate.encoding

    def recording(self: SealedUpdate, parameters: RoundParameters) -> EncodedUpdate:
        masked[self.digest] = all_entries(genuine(self, parameters), parameters)
        return masked[self.digest]

    monkeypatch.setattr(SealedUpdate, "encoding", recording)
    total = _moments(founded, tmp_path, victim, killers)
    assert total > 15
    dropped = 0
    for at in range(1, total + 1):
        masked.clear()
        copy = _copy(founded, tmp_path / f"at-{at}")
        played = _play(copy, copy.coordinator.parent / victim, at, killers)
        chain = CoordinatorFiles.open(copy.coordinator).chain()
        assert chain.position.round == 1, f"killed at moment {at} of {total}"
        for (silo, phase, _), left in played.replies.items():
            if phase not in (letters.HELLO, letters.SYNC):
                assert len(left) == 1, f"moment {at}: {silo} gave two replies to one {phase}"
        record = chain.verified[-1].record
        content = (copy.coordinator / "rounds/0001/aggregate.bin").read_bytes()
        _check_sum(content, record.survivors, copy, list(masked.values()))
        for silo, path in copy.silos.items():
            assert silo_budget(path).rounds_charged == (silo in record.survivors), (at, silo)
            assert not [*path.glob("rounds/*/session"), *path.glob("rounds/*/update.sealed")], (at, silo)
        assert set(copy.silos) - set(record.survivors) <= {victim}
        dropped += len(copy.silos) - len(record.survivors)
        shutil.rmtree(tmp_path / f"at-{at}")
    # Only between the note that an attempt is entered and its first journal is there nothing to go on from.
    assert dropped <= 2


def _check_sum(
    content: bytes,
    survivors: tuple[str, ...],
    federation: SmallFederation,
    encoded: list[EncodedUpdate],
) -> None:
    parameters = RoundParameters.derive(federation.plan, SILOS, SILOS)
    total = AggregateSum.from_bytes(content, parameters)
    assert len(encoded) == len(survivors)
    assert any(vector.any() for update in encoded for vector in (update.words, *update.others))
    expected = sum(np.asarray(update.words, np.int64) for update in encoded)
    difference = (np.asarray(expected) - total.words.astype(np.int64)) % 2**parameters.vector_bits
    assert not difference.any()
    for at, segment in enumerate(parameters.segments):
        signed = segment.word.str.replace("u", "i")
        whole = sum(update.others[at].view(signed).astype(np.int64) for update in encoded)
        assert np.array_equal(total.others[at].view(signed), whole)

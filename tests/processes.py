"""Federations whose parties are processes, which a test starts, kills and starts again.

The commands are those of the command line, run by ``tests.party``. A process that has imported everything is forked
for each (``multiprocessing``'s fork server), so that a party starts in a tenth of a second and not in three.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachefl_secure.federation.budget import silo_budget
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.letters import HELLO, SYNC
from cachefl_secure.federation.record import RoundRecord
from cachefl_secure.names import SiloId
from cachefl_secure.privacy_plan import PrivacyPlan
from cachefl_secure.protocol.encoding import decode_sum
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum
from tests import party
from tests.claims import REPOSITORY
from tests.party import Faults, Paths, part_of
from tests.small_federation import SmallFederation, found, small_privacy

PATIENCE_SECONDS = 90.0
"""How long anything may take on a loaded machine before a test says that it does not come."""
KILLED = -9
SOUND = Faults()
_PRELOADED = [
    "tests.party",
    "pytest",
    "cachefl_secure.transport.engines",
    "cachefl_secure.federation.budget",
    "fsspec.core",
    "fsspec.implementations.local",
    # The accountants' imports, which take each process three seconds otherwise.
    "dp_accounting.pld.privacy_loss_distribution",
    "dp_accounting.rdp",
    "scipy.optimize",
    "scipy.special",
]
Fork = Any  # multiprocessing.context.ForkServerProcess, which does not exist on every system


def until(holds: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Looks until it holds, and fails after a while."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"did not come: {what}"
        time.sleep(0.01)


@dataclass(frozen=True, eq=False)
class Party:
    """A command in a process of its own."""

    process: Fork
    said_file: Path
    patience_seconds: float = PATIENCE_SECONDS

    @property
    def said(self) -> str:
        return self.said_file.read_text()

    @property
    def ending(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code: int | None = self.process.exitcode
        return code

    def end(self) -> int:
        """Waits for it."""
        self.process.join(self.patience_seconds)
        assert self.ending is not None, f"still runs: {self.said}"
        return self.ending

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.join(PATIENCE_SECONDS)

    def result(self) -> dict[str, Any]:
        """What a command with ``--json`` printed, which must have succeeded."""
        assert self.end() == 0, self.said
        printed: dict[str, Any] = json.loads(self.said[self.said.index("{") : self.said.rindex("}") + 1])
        result: dict[str, Any] = printed["result"]
        return result


@dataclass(eq=False)
class Stage:
    """A federation at a mailbox in a folder, and its processes."""

    federation: SmallFederation
    store: Path
    paths: Paths
    serving: dict[SiloId, Party] = field(default_factory=dict)
    _started: list[Party] = field(default_factory=list)
    patience_seconds: float = PATIENCE_SECONDS

    @property
    def silos(self) -> list[SiloId]:
        return sorted(self.federation.silos)

    def start(self, *arguments: str | Path, faults: Faults = SOUND) -> Party:
        number, words = len(self._started), [str(argument) for argument in arguments]
        said = self.paths.said(number)
        said.touch()
        process = multiprocessing.get_context("forkserver").Process(
            target=party.run, args=(words, self.paths, number, faults), daemon=True
        )
        process.start()
        started = Party(process, said, self.patience_seconds)
        self._started.append(started)
        return started

    def serve(self, *silos: str, faults: Faults = SOUND) -> None:
        """Starts silos; none given: all. Returns when each is at work."""
        chosen = [SiloId(silo) for silo in silos] or self.silos
        invite = self.federation.coordinator / "invite.toml"
        for silo in chosen:
            self.paths.silent(silo).unlink(missing_ok=True)
            self.serving[silo] = self.start("join", invite, self.federation.silos[silo], faults=faults)
        for silo in chosen:
            self.until_said(silo, "waiting for")

    def kill(self, silo: str) -> None:
        """kill -9 of a silo that serves."""
        self.paths.silent(silo).touch()
        self.serving.pop(SiloId(silo)).kill()

    def round(self, *options: str, deadline: float = PATIENCE_SECONDS, faults: Faults = SOUND) -> Party:
        """Starts the coordinator."""
        patience = ("--deadline", str(deadline), "--gather", str(deadline))
        return self.start("round", self.federation.coordinator, "--json", *patience, *options, faults=faults)

    def held_round(self, at: str, *options: str) -> tuple[Party, Path]:
        """A round whose coordinator waits at this point now, and the gate that lets it go on when it is made."""
        gate = self.paths.gate(f"coordinator-{len(self._started)}")
        held = self.round(*options, faults=Faults(hold_at=at, gate=gate))
        until(
            lambda: gate.with_suffix(".reached").exists() or held.ending is not None,
            f"the coordinator is at {at}",
            self.patience_seconds,
        )
        assert held.ending is None, held.said
        return held, gate

    def play_round(self, *options: str) -> dict[str, Any]:
        """A round to its end."""
        (outcome,) = self.round(*options).result()["rounds"]
        return dict(outcome)

    def revive_until_end(self, coordinator: Party, seconds: float = PATIENCE_SECONDS) -> list[SiloId]:
        """Whatever silo was killed is started again, as a supervisor would, until the coordinator ends.

        Returns those that were killed.
        """
        revived: list[SiloId] = []

        def look() -> bool:
            ended = coordinator.ending is not None  # first: who died before it ended is started too
            for silo, serving in self.serving.items():
                if serving.ending is not None:
                    assert serving.ending == KILLED, serving.said
                    self.serve(silo)
                    revived.append(silo)
            return ended

        until(look, "the coordinator ends", seconds)
        return revived

    def until_said(self, silo: str, sentence: str) -> None:
        said = self.serving[SiloId(silo)]
        until(lambda: sentence in said.said, f"{silo} says: {sentence}", self.patience_seconds)

    def running(self) -> list[Party]:
        return [started for started in self._started if started.ending is None]

    def kill_all(self) -> None:
        for started in self.running():
            started.kill()
        self.serving.clear()

    # --- what came of it

    def chain(self) -> Chain:
        """The coordinator's records, verified."""
        return CoordinatorFiles.open(self.federation.coordinator).chain()

    def records(self) -> list[RoundRecord]:
        """Verified, and each sum shown to be that of its survivors' updates, each once."""
        chain = self.chain()
        for held in chain.verified:
            assert sorted(_parts_of(chain, held.record)) == sorted(held.record.survivors), held.record.round
        return [held.record for held in chain.verified]

    def charges(self) -> dict[SiloId, int]:
        """Silo -> rounds in its ledger, which verifies. Of silos that do not write just now."""
        return {silo: silo_budget(path).rounds_charged for silo, path in self.federation.silos.items()}

    def replies(self, silo: SiloId) -> list[dict[str, str | None]]:
        lines = self.paths.replies(silo).read_text().splitlines()
        return [json.loads(line) for line in lines]

    def check_no_second_reply(self) -> None:
        """No silo ever answered one message of an attempt in two ways, whatever it had been through."""
        for silo in self.silos:
            answers: dict[str | None, set[str | None]] = {}
            for reply in self.replies(silo):
                if reply["phase"] not in (HELLO, SYNC) and reply["declined"] is None:
                    answers.setdefault(reply["asked"], set()).add(reply["reply"])
            assert all(len(different) == 1 for different in answers.values()), (silo, answers)


def _parts_of(chain: Chain, record: RoundRecord) -> Iterator[str]:
    """The silos whose updates are in a sum: each adds a power of two of its own (``party.part_of``)."""
    members = chain.rosters.named(record.roster_digest)
    assert members is not None
    parameters = RoundParameters.derive(chain.plan, len(record.cohort), len(members.members))
    raw = dict(zip(range(1, 1 + len(chain.verified)), chain.rounds_after(0), strict=True))[record.round][1]
    total = float(np.mean(decode_sum(AggregateSum.from_bytes(raw, parameters), parameters).values))
    for member in sorted(members.members, key=lambda member: part_of(member.silo), reverse=True):
        if total > part_of(member.silo) - part_of("silo-0") / 2:
            total -= part_of(member.silo)
            yield member.silo
    assert abs(total) < part_of("silo-0") / 2


@cache
def privacy_of_stages() -> PrivacyPlan:
    """Twelve rounds of the quickest mechanism."""
    return small_privacy(PrivacyChoices(mechanism="local", rounds=12, expected_records=15))


@contextmanager
def stage(root: Path, silos: int = 4, *, store: Path | None = None) -> Iterator[Stage]:
    """A federation of so many silos, none started. Whatever still runs in the end is killed."""
    place = store or root / "store"
    place.mkdir(parents=True, exist_ok=True)
    work = root / "work"
    work.mkdir()
    records = [9 + number for number in range(silos)]
    federation = found(root, records=records, privacy=privacy_of_stages(), engine=f"dir://{place}")
    start_forkserver()
    made = Stage(federation, place, Paths(work))
    try:
        yield made
    finally:
        made.kill_all()


@cache
def start_forkserver() -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Before Python 3.13 the fork server does not hear of this process's path by itself.
        paths = [str(REPOSITORY), str(REPOSITORY / "cli"), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()

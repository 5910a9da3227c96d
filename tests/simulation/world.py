"""A federation in which everything that can go wrong does so by the seed: real services, simulated misfortune.

The coordinator's exchange is the clock. In it requests are lost, late, doubled, damaged or replayed, silos die
before, while and after they answer, and replies are lost, damaged or those of another time. No threads, no
clock but the number of events, no randomness but the seed's.
"""

from __future__ import annotations

import contextlib
import functools
import random
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import CacheflError, ConfigError, PeerError, RoundAborted
from cachefl_secure.federation import state_dir
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import CoordinatorService
from cachefl_secure.federation.roster_files import read_history
from cachefl_secure.federation.sealed_update import SealedUpdate
from cachefl_secure.federation.silo_attempt import Trainer
from cachefl_secure.federation.silo_files import LEDGER_FILE, SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.federation.synchronising import Attendance
from cachefl_secure.names import SiloId
from cachefl_secure.plan import FederationPlan
from cachefl_secure.privacy import append_only
from cachefl_secure.privacy.ledger import Ledger
from cachefl_secure.privacy.mechanism import mechanism_fields, mechanism_of
from cachefl_secure.protocol import answering, masking
from cachefl_secure.protocol.masking import Masks
from cachefl_secure.protocol.messages import Roster
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import EncodedUpdate, MaskedUpdate
from cachefl_secure.updates import NoisedUpdate
from tests.simulation.disk import ROOT, Killed, SimDisk
from tests.simulation.knowledge import Knowledge, Update, Upload
from tests.simulation.mechanisms import LOCAL, MECHANISMS, drawn_update, privacy_of
from tests.simulation.observer import Observer, Violation, search_secrets
from tests.simulation.primitives import SeededTokens, remember_primitives
from tests.simulation.watching import watch
from tests.small_federation import SmallFederation, all_entries, found, join_with_random_features

_T = TypeVar("_T")

COORDINATOR_ROOT = "coordinator"
HEALED, SEARCHED = 5, 50
"""One schedule in so many is healed and must get a record; is searched for secrets. The rest is cheaper."""

NO_SILO_IN_PARTICULAR = "a silo of the cohort"
"""Whom the coordinator blames for a sum that is out of bounds."""

AFTER_HEALING = 4
"""Rounds that an honest coordinator may need after the faults stop: one to finish or give up, some to retry."""


@dataclass(frozen=True)
class Template:
    """A federation that was founded once; every schedule starts from a copy of its files."""

    root: Path
    federation: SmallFederation
    silos: dict[SiloId, SiloFiles]
    coordinator: CoordinatorFiles
    roster: Roster
    newcomer: SiloFiles
    """A silo that asks to be admitted; it is in no roster yet."""
    parameters: Mapping[tuple[int, int], RoundParameters]
    """By sizes of cohort and roster; derived before any bug is planted."""
    colluders: int

    @classmethod
    def found(cls, root: Path, silos: int, colluders: int, mechanism: str = LOCAL) -> Template:
        federation = found(
            root,
            records=(12,) * silos,
            privacy=privacy_of(mechanism, silos),
            colluders=colluders,
            epsilon_cap=1e6,
        )
        name = SiloId(f"silo-{silos + 1}")
        newcomer = join_with_random_features(
            root / name, federation.coordinator, name, 12, seed=silos + 1, epsilon_cap=1e6
        )
        files = {silo: SiloFiles.open(path) for silo, path in federation.silos.items()}
        coordinator = CoordinatorFiles.open(federation.coordinator)
        chain = coordinator.chain()
        synchronised = _Directly({silo: SimSilo(silo, each) for silo, each in files.items()})
        CoordinatorService(coordinator.state, chain, synchronised).synchronise(Attendance())
        parameters = {
            (cohort, roster): RoundParameters.derive(chain.plan, cohort, roster)
            for roster in range(3, silos + 2)
            for cohort in range(3, roster + 1)
            if _is_legal(chain.plan, cohort, roster)
        }
        waiting = SiloFiles.open(newcomer)
        return cls(root, federation, files, coordinator, chain.roster, waiting, parameters, colluders)

    @property
    def plan(self) -> FederationPlan:
        return self.coordinator.plan

    def signing_key(self, party: str) -> SigningKey:
        """For those who lie: they do not stumble over their own disk."""
        return SigningKey(self.content[f"{party}/keys/signing.key"][0])

    @functools.cached_property
    def content(self) -> dict[str, tuple[bytes, int]]:
        """Path -> (content, mode) of every file."""
        files = (path for path in self.root.rglob("*") if path.is_file() and path.suffix != ".lock")
        return {
            str(path.relative_to(self.root)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
            for path in files
        }


@dataclass
class Faults:
    """What goes wrong, as probabilities an event. Drawn anew for each schedule."""

    lost: float = 0.0
    late: float = 0.0
    doubled: float = 0.0
    damaged: float = 0.0
    replayed: float = 0.0
    reply_lost: float = 0.0
    reply_damaged: float = 0.0
    reply_swapped: float = 0.0
    death: float = 0.0
    """Of a silo around its answer, and of the coordinator around an exchange."""
    disk_death: float = 0.0
    disk_refusal: float = 0.0
    disk_blindness: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> Faults:
        """Each kind absent in half of the schedules, so that rare combinations are met undisturbed."""
        ceilings = (0.15, 0.15, 0.3, 0.1, 0.3, 0.15, 0.08, 0.1, 0.1, 0.015, 0.015, 0.01)
        return cls(*(rng.random() * most if rng.random() < 0.5 else 0.0 for most in ceilings))


@dataclass
class SimSilo:
    """A silo's process: alive with a service, or dead with a directory."""

    name: SiloId
    files: SiloFiles
    service: SiloService | None = None
    ledger: Ledger | None = None
    training: int = 0

    def start(self) -> SiloService:
        if self.service is None:
            ledger = self.files.ledger()
            try:
                self.service = SiloService(self.files, ledger, Trainer(lambda *_: None, self._train))
            except BaseException:
                ledger.close()
                raise
            self.ledger = ledger
        return self.service

    def die(self) -> None:
        if self.ledger is not None:
            self.ledger.close()  # the system drops a dead process's lock
        self.service = self.ledger = None
        self.files = self.reopened_files()

    def reopened_files(self) -> SiloFiles:
        """As another process opens them, a command or the next one: it knows nothing of what this one synced."""
        return replace(self.files, state=StateDir(self.files.state.root))

    def _train(self, *_: object) -> NoisedUpdate:
        self.training += 1
        return drawn_update(self.files.plan, np.random.default_rng(_seed_of(self.name, self.training)))


def _is_legal(plan: FederationPlan, cohort: int, roster: int) -> bool:
    try:
        RoundParameters.derive(plan, cohort, roster)
    except ConfigError:
        return False
    return True


def _seed_of(name: str, number: int) -> int:
    return int.from_bytes(f"{name}/{number}".encode(), "big") % (1 << 63)


@dataclass(frozen=True)
class _Directly:
    """A channel on which nothing goes wrong, for setting up."""

    silos: Mapping[SiloId, SimSilo]

    def exchange(
        self, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        answers = {silo: self.silos[silo].start().handle(phase, asked) for silo, asked in requests.items()}
        for silo in self.silos.values():
            silo.die()
        return answers


@dataclass
class World:
    """One schedule."""

    template: Template
    seed: int
    root: Path
    rng: random.Random
    faults: Faults
    disk: SimDisk
    silos: dict[SiloId, SimSilo]
    newcomer: SimSilo
    """Among ``silos`` from when it is proposed."""
    observer: Observer
    events: list[str] = field(default_factory=list)
    history: list[tuple[SiloId, str, bytes]] = field(default_factory=list)
    """Every request that was made, for replays."""
    late: list[tuple[SiloId, str, bytes]] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    """Every reply that was given, for swapping."""
    records_seen: int = 0
    epochs: int = 1
    """At the coordinator, when the schedule was over."""
    held: set[bytes] = field(default_factory=set)
    """Private keys that a malicious coordinator made itself."""
    is_quiet: bool = field(init=False)
    """Nothing went wrong by itself, from the start."""

    def __post_init__(self) -> None:
        self.is_quiet = self.faults == Faults()

    # --- one silo

    def deliver(self, silo: SiloId, phase: str, content: bytes) -> bytes | None:
        """The silo handles one request; None if it died. Every reply that leaves is observed."""
        process = self.silos[silo]
        try:
            if self.rng.random() < self.faults.death or self.disk.moment(silo):
                raise Killed
            reply = process.start().handle(phase, content)
            self.observe(process, phase, content, reply)
            if self.rng.random() < self.faults.death or self.disk.moment(silo):
                raise Killed
        except Killed:
            self.note(f"{silo} dies in {phase}")
            process.die()
            self.disk.on_death(silo)
            return None
        except CacheflError as error:  # on starting: its operator reads this and starts it again
            self.note(f"{silo} does not start: {error}")
            process.die()
            return None
        return reply

    def observe(self, process: SimSilo, phase: str, content: bytes, reply: bytes) -> None:
        charged = self.disk.safe_content(process.files.state.path(LEDGER_FILE))
        self.note(f"{process.name} answers {phase}, {len(reply)} bytes")
        self.answers.append(reply)
        self.observer.on_reply(process.name, phase, content, reply, charged)
        trouble = process.start().take_trouble()
        if isinstance(trouble, Violation):  # found while the silo was at work
            raise trouble
        if trouble is not None and not isinstance(trouble, CacheflError | OSError):
            raise Violation("I7", f"{process.name}: {type(trouble).__name__} in {phase}") from trouble

    # --- the network, as the coordinator's channel

    def exchange(
        self, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        self._may_kill_coordinator(phase)
        answers: dict[SiloId, bytes] = {}
        for silo, asked, content in self._take_late():
            self.deliver(silo, asked, content)
        order = sorted(requests)
        self.rng.shuffle(order)
        for silo in order:
            content = requests[silo]
            self.history.append((silo, phase, content))
            if (reply := self._ask(silo, phase, content)) is not None:
                answers[silo] = reply
        self._may_kill_coordinator(phase)
        return answers

    def _ask(self, silo: SiloId, phase: str, content: bytes) -> bytes | None:
        faults, chance = self.faults, self.rng.random
        if chance() < faults.replayed:
            self.deliver(silo, *self.rng.choice(self.history)[1:])
        if chance() < faults.lost:
            return None
        if chance() < faults.late:
            self.late.append((silo, phase, content))
            return None
        if chance() < faults.damaged:
            return self.deliver(silo, phase, self.damage(content))
        reply = self.deliver(silo, phase, content)
        if reply is None and chance() < 0.7:  # a transport that asks again
            reply = self.deliver(silo, phase, content)
        if chance() < faults.doubled:
            again = self.deliver(silo, phase, content)
            reply = again if chance() < 0.5 else reply
        if chance() < faults.reply_lost:
            return None
        if reply is not None and chance() < faults.reply_damaged:
            return self.damage(reply)
        if self.answers and chance() < faults.reply_swapped:
            return self.rng.choice(self.answers)
        return reply

    def _take_late(self) -> list[tuple[SiloId, str, bytes]]:
        arriving = [item for item in self.late if self.rng.random() < 0.5]
        self.late = [item for item in self.late if item not in arriving]
        return arriving

    def damage(self, content: bytes) -> bytes:
        if not content:
            return b"\0"
        at = self.rng.randrange(len(content))
        match self.rng.randrange(3):
            case 0:
                return content[:at]
            case 1:
                return content[:at] + bytes([content[at] ^ 1 << self.rng.randrange(8)]) + content[at + 1 :]
            case _:
                return content + self.rng.randbytes(1 + at % 7)

    def _may_kill_coordinator(self, phase: str) -> None:
        if self.rng.random() < self.faults.death / 2 or self.disk.moment(COORDINATOR_ROOT):
            self.note(f"coordinator dies around {phase}")
            raise Killed

    # --- the coordinator's process

    def run_coordinator(self) -> bool:
        """Starts it, lets it try one round, and says whether a record came of it."""
        try:
            state = self.state
            chain = self.chain(state)
            service, attendance = CoordinatorService(state, chain, self), Attendance()
            before = chain.position.round
            ready = service.synchronise(attendance)
            outcome = service.finish_round(attendance) or service.run_round(ready, attendance)
            self.note(f"round {outcome.record.round} done: {', '.join(outcome.record.survivors)}")
            service.synchronise(attendance)
            return chain.position.round > before
        except Killed:
            self.disk.on_death(COORDINATOR_ROOT)
        except RoundAborted as aborted:
            self.note(f"round aborted: {aborted}")
        except CacheflError as error:
            if isinstance(error, PeerError) and error.peer == NO_SILO_IN_PARTICULAR:
                raise Violation("I1", f"not a sum of what honest silos sent: {error}") from error
            self.note(f"coordinator stops: {type(error).__name__}: {error}")
        finally:
            self.check_records()
        return False

    def check_records(self) -> None:
        """I1 for records that are new at the coordinator, and the same records at the silos."""
        if sum(path.endswith("/record.json") for path in self.disk.seen if "/coordinator/" in path) > (
            self.records_seen
        ):
            with self.disk.undisturbed():
                self._check_new_records()

    def _check_new_records(self) -> None:
        chain = self.chain()
        for held in chain.verified[self.records_seen :]:
            name = f"rounds/{held.record.round:04d}/aggregate.bin"
            self.observer.on_record(held.record, self.state.read(name))
        self.records_seen = len(chain.verified)

    # --- the whole

    def heal(self) -> None:
        """Faults stop; every party is started anew."""
        self.faults, self.disk.kill_at = Faults(), None
        self.disk.death = self.disk.refusal = self.disk.blindness = 0.0
        for name, silo in self.silos.items():
            silo.die()
            self.disk.on_death(name)
        self.note("healed")

    def finish(self) -> None:
        """I5. One release is enough, and faults may lose it: a silo that let its go in a round that is over has no other."""
        self.heal()
        is_recorded = self.template.plan.is_one_release and self.records_seen > 0
        if not is_recorded and not any(self.run_coordinator() for _ in range(AFTER_HEALING)):
            if self.template.plan.is_one_release and not self.is_quiet and self._is_release_lost():
                self.note("the release is lost")
                return
            raise Violation("I5", "no record after the faults stopped")

    def _is_release_lost(self) -> bool:
        chain = self.chain()
        number = CoordinatorService(self.state, chain, self).next_round()
        members = set(chain.roster.public_keys)
        gone = {name for name in members if self._sent(name) - {number}}
        least = self.template.parameters[len(members), len(members)].minimum_survivors
        return len(members - gone) < least

    def _sent(self, silo: SiloId) -> set[int]:
        """Rounds in which the silo's ledger lets an update leave."""
        return self.observer.sent_rounds(
            self.disk.safe_content(self.silos[silo].files.state.path(LEDGER_FILE))
        )

    @property
    def state(self) -> StateDir:
        """The coordinator's."""
        return StateDir(self.root / COORDINATOR_ROOT)

    def chain(self, state: StateDir | None = None) -> Chain:
        """As the coordinator reads it now: the process that has opened ``state``, or a new one."""
        state = state or self.state
        return Chain(state, self.template.plan, read_history(state, self.template.plan))

    def check(self) -> None:
        """I2, over all that was said."""
        self.observer.check_knowledge(self.silos, self.template.colluders, self.held)

    def close(self) -> None:
        for silo in self.silos.values():
            silo.die()

    def note(self, event: str) -> None:
        self.events.append(event)


def _clock(seconds: Callable[[], int]) -> SimpleNamespace:
    """In the place of ``datetime`` where files get their times."""
    return SimpleNamespace(now=lambda zone: datetime(2026, 1, 1, tzinfo=zone) + timedelta(seconds=seconds()))


@dataclass
class Stage:
    """What a process needs to play schedules: templates, remembered primitives, patched seams."""

    root: Path
    tokens: SeededTokens
    templates: dict[str, list[Template]]
    """By mechanism; three silos and four are played twice as often as five."""
    patch: pytest.MonkeyPatch
    world: World | None = None

    @classmethod
    def build(cls, root: Path, patch: pytest.MonkeyPatch) -> Stage:
        tokens = remember_primitives(patch)
        patch.setattr(state_dir, "datetime", _clock(lambda: 0))
        templates = {}
        for mechanism in MECHANISMS:
            three, four, five = (
                Template.found(root / f"{mechanism}-{silos}", silos, colluders, mechanism)
                for silos, colluders in ((3, 0), (4, 1), (5, 1))
            )
            templates[mechanism] = [three, three, four, four, five]
        stage = cls(root, tokens, templates, patch)
        stage._watch()
        return stage

    def _watch(self) -> None:
        """Masks and encodings are reported to the world that is being played."""
        mask = masking.mask

        def watched_mask(
            update: EncodedUpdate, masks: Masks, parameters: RoundParameters, *, content: NDArray[np.uint8]
        ) -> MaskedUpdate:
            masked = mask(update, masks, parameters, content=content)
            if self.world is not None:
                added = tuple(seed.reveal() for seed in masks.added)
                subtracted = tuple(seed.reveal() for seed in masks.subtracted)
                observer, silo = self.world.observer, self._acting()
                observer.on_mask(silo, update, added, subtracted, masked, parameters)
                observer.knowledge.made[masked.packed.tobytes()] = Upload(
                    Update(silo, self._round_of(silo), update.to_bytes()), added, subtracted
                )
            return masked

        genuine = SealedUpdate.encoding

        def watched_encoding(update: SealedUpdate, parameters: RoundParameters) -> EncodedUpdate:
            encoded = all_entries(genuine(update, parameters), parameters)
            if self.world is not None:
                silo = self._acting()
                self.world.observer.on_encoded(silo, self._round_of(silo), encoded)
            return encoded

        def current() -> tuple[Knowledge, SiloId | None] | None:
            if self.world is None:
                return None
            return self.world.observer.knowledge, None if self._actor is None else self._actor.silo

        watch(self.patch, current)
        self.patch.setattr(answering, "mask", watched_mask)
        self.patch.setattr(SealedUpdate, "encoding", watched_encoding)
        records = self.templates[LOCAL][0].silos[SiloId("silo-1")].records()
        self.patch.setattr(SiloFiles, "records", lambda files, view=0: records)
        # One process plays all parties, one at a time: the file lock says nothing here, and costs.
        self.patch.setattr(append_only, "locked", lambda path: SimpleNamespace(release=lambda: None))
        self.patch.setattr(StateDir, "lock", lambda state, name="": contextlib.nullcontext())
        # Whether two notes were written within one second must not decide what a torn disk leaves of them.
        self.patch.setattr(state_dir, "datetime", _clock(self._events))
        handle = SiloService.handle

        def acting(service: SiloService, phase: str, content: bytes) -> bytes:
            self._actor = service
            return handle(service, phase, content)

        self.patch.setattr(SiloService, "handle", acting)

    def _events(self) -> int:
        return 0 if self.world is None else len(self.world.events)

    _actor: SiloService | None = None

    def _acting(self) -> SiloId:
        assert self._actor is not None
        return self._actor.silo

    def _round_of(self, silo: SiloId) -> int:
        assert self._actor is not None
        return self._actor._running().manifest.round

    def new_world(self, seed: int, faults: Faults | None = None, mechanism: str = LOCAL) -> World:
        """A fresh federation for one schedule. Close it before the next one."""
        rng = random.Random(seed)
        template = rng.choice(self.templates[mechanism])
        root = Path(ROOT)
        self.tokens.restart(seed)
        faults = faults or Faults.draw(rng)
        disk = SimDisk.holding(template.content, rng)
        disk.death, disk.refusal, disk.blindness = (
            faults.disk_death,
            faults.disk_refusal,
            faults.disk_blindness,
        )
        self._schedule_patch = pytest.MonkeyPatch()
        disk.install(self._schedule_patch)

        def process(files: SiloFiles) -> SimSilo:
            return SimSilo(files.silo, replace(files, state=StateDir(root / files.state.root.name)))

        silos = {name: process(files) for name, files in template.silos.items()}
        charged = mechanism_fields(mechanism_of(template.plan))
        observer = Observer(template.parameters, len(template.roster.members), charged)
        newcomer = process(template.newcomer)
        self.world = World(template, seed, root, rng, faults, disk, silos, newcomer, observer)
        return self.world

    _schedule_patch: pytest.MonkeyPatch | None = None

    def end_schedule(self) -> None:
        """Takes the simulated disk away."""
        if self._schedule_patch is not None:
            self._schedule_patch.undo()
        self._schedule_patch = self.world = None

    def close(self) -> None:
        self.end_schedule()
        self.patch.undo()


Strategy = Callable[[World], None]


def honest(world: World) -> None:
    """A coordinator that follows the protocol, is killed, and is started again by its operator."""
    for _ in range(world.rng.randrange(1, 4)):
        if world.run_coordinator() and world.rng.random() < 0.6:
            return


def is_honest(strategy: Strategy) -> bool:
    """Whether its coordinator follows the protocol, and so gets a record once the faults stop."""
    return strategy.__name__ in ("honest", "changing", "coming_and_going")


def play(
    stage: Stage,
    seed: int,
    strategy: Strategy = honest,
    faults: Faults | None = None,
    mechanism: str = LOCAL,
) -> World:
    """One schedule to its end, every invariant checked.

    Raises:
        Violation: with the seed and the last events.
    """
    world = stage.new_world(seed, faults, mechanism)
    try:
        try:
            _play(stage, world, strategy)
        except Violation:
            raise
        except Exception as error:
            raise Violation("I7", f"{type(error).__name__} got out: {error}") from error
    except Violation as violation:
        violation.add_note(
            f"seed {seed}, {mechanism}, {strategy.__name__}: {len(world.events)} events, the last ones:"
        )
        for event in world.events[-30:]:
            violation.add_note(f"  {event}")
        raise
    finally:
        world.close()
        stage.end_schedule()
    return world


def _play(stage: Stage, world: World, strategy: Strategy) -> None:
    strategy(world)
    if world.seed % HEALED == 0 and is_honest(strategy):
        world.finish()
    world.check()
    if world.seed % SEARCHED == 0:
        search_secrets(stage.tokens.drawn, world.answers, world.disk.written)

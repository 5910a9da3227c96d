"""A roster that changes under the same misfortune: silos get new keys, come and go, and everybody may die at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cachefl_secure.errors import CacheflError
from cachefl_secure.federation.confirming import ROTATE_FILE, Shown, ask_for_new_key, confirm_change
from cachefl_secure.federation.coordinator_files import Candidate, CoordinatorFiles
from cachefl_secure.federation.enrolment import JoinRequest, Voucher, open_roster
from cachefl_secure.federation.roster_change import RosterChange
from cachefl_secure.federation.roster_files import pending_change, read_history
from cachefl_secure.federation.silo_files import REQUEST_FILE, SiloFiles
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir
from cachefl_secure.names import PublicKeyHex, SiloId
from cachefl_secure.plan import decode_toml
from cachefl_secure.protocol.messages import Member, roster_digest
from tests.simulation.disk import Killed
from tests.simulation.observer import Violation
from tests.simulation.world import COORDINATOR_ROOT, World


def changing(world: World) -> None:
    """An honest coordinator whose silos get new keys between its starts, or begin to."""
    for _ in range(world.rng.randrange(2, 5)):
        if world.rng.random() < 0.7:
            _ask_for_new_key(world)
            _approve(world)
        world.run_coordinator()
    check_rosters(world)


def coming_and_going(world: World) -> None:
    """An honest coordinator whose roster grows, shrinks and gets new keys between its starts, or begins to."""
    for _ in range(world.rng.randrange(2, 5)):
        if world.rng.random() < 0.8:
            world.rng.choice((_admit, _admit, _remove, _ask_for_new_key))(world)
            _approve(world)
        world.run_coordinator()
    check_rosters(world)


def _ask_for_new_key(world: World) -> None:
    silo = world.rng.choice(sorted(world.silos))
    files = world.silos[silo].reopened_files()

    def propose() -> RosterChange:
        asked = decode_toml(files.state.read(ROTATE_FILE), JoinRequest, file=ROTATE_FILE)
        assert asked.signature_by_old_key is not None
        voucher = Voucher(silo, bytes.fromhex(asked.signature_by_old_key), bytes.fromhex(asked.signature))
        return _coordinator(world).propose([_candidate(asked, ROTATE_FILE, voucher)])

    _typed(world, silo, lambda: ask_for_new_key(files))
    _propose(world, propose)


def _admit(world: World) -> None:
    newcomer = world.newcomer

    def propose() -> RosterChange:
        asked = decode_toml(
            newcomer.reopened_files().state.read(REQUEST_FILE), JoinRequest, file=REQUEST_FILE
        )
        return _coordinator(world).propose([_candidate(asked, REQUEST_FILE)])

    _propose(world, propose)


def _remove(world: World) -> None:
    leaving = world.rng.choice(sorted(world.silos))
    _propose(world, lambda: _coordinator(world).propose([], remove=[leaving]))


def _candidate(asked: JoinRequest, file: str, voucher: Voucher | None = None) -> Candidate:
    return Candidate(Member(SiloId(asked.silo), PublicKeyHex(asked.public_key)), "", Path(file), voucher)


def _propose(world: World, propose: Callable[[], RosterChange]) -> None:
    def typed() -> None:
        propose()

    _typed(world, COORDINATOR_ROOT, typed)
    _note_proposal(world)


def _note_proposal(world: World) -> None:
    """What the observer must know of a roster that may follow; also one that a death hides from its operator."""
    with world.disk.undisturbed():
        coordinator = _coordinator(world)
        change = pending_change(coordinator.state, coordinator.rosters())
    if change is None:
        return
    roster = open_roster(change.roster, world.template.plan)
    world.observer.roster_sizes[roster_digest(roster)] = len(roster.members)
    if world.newcomer.name in roster.public_keys:
        world.silos[world.newcomer.name] = world.newcomer


def _approve(world: World) -> None:
    """Each of the silos approves what waits, with some luck."""
    for silo in sorted(world.silos):
        if world.rng.random() < 0.85:
            _typed(world, silo, lambda silo=silo: _confirm(world, world.silos[silo].reopened_files()))  # type: ignore[misc]


def _coordinator(world: World) -> CoordinatorFiles:
    return replace(world.template.coordinator, state=StateDir(world.root / COORDINATOR_ROOT))


def _confirm(world: World, files: SiloFiles) -> None:
    with world.disk.undisturbed():  # what it is shown came by a message
        coordinator = _coordinator(world)
        change = pending_change(coordinator.state, coordinator.rosters())
    if change is not None:
        confirm_change(files, Shown.of(change, read_history(files.state, files.plan)))


def _typed(world: World, party: str, command: Callable[[], object]) -> None:
    """A command of one party's operator; a disk may fail it, and power may go."""
    try:
        command()
    except Killed:
        if party in world.silos and world.rng.random() < 0.5:
            world.note(f"a command of {party} dies")  # the silo's process beside it goes on
            world.disk.dying.discard(party)
            return
        world.note(f"{party} dies over a command")
        if party in world.silos:
            world.silos[SiloId(party)].die()
        world.disk.on_death(party)
    except CacheflError as error:
        world.note(f"{party} is told: {error}")


def check_rosters(world: World) -> None:
    """I9."""
    world.heal()
    rosters = [read_history(StateDir(world.root / COORDINATOR_ROOT), world.template.plan)]
    for silo in world.silos.values():
        if not silo.files.state.has(ROSTER_FILE):
            continue  # proposed, and nobody has told it more
        try:
            silo.start()  # completes what was cut off
        except CacheflError as error:
            raise Violation(
                "I9", f"{silo.name} does not start under the roster that it followed: {error}"
            ) from error
        rosters.append(read_history(silo.files.state, silo.files.plan))
        own = silo.files.state.signing_key().public_key
        held = rosters[-1].current.public_keys.get(silo.name)  # None: it has left
        if held not in (None, own):
            raise Violation("I9", f"{silo.name} has another key than its roster names")
        if rosters[-1].current.epoch > rosters[0].current.epoch:
            raise Violation("I9", f"{silo.name} is ahead of the coordinator")
    for epoch in range(max(each.current.epoch for each in rosters)):
        if len({roster_digest(each.rosters[epoch]) for each in rosters if epoch < len(each.rosters)}) > 1:
            raise Violation("I9", f"two rosters of epoch {epoch + 1}")
    for history in rosters:
        for before, change in zip(history.rosters, history.changes, strict=False):
            # Two such groups share an honest silo, so that no two changes of one roster are approved.
            quorum = (len(before.members) + world.template.colluders) // 2 + 1
            if len({approval.silo for approval in change.approvals} & set(before.public_keys)) < quorum:
                raise Violation("I9", f"epoch {before.epoch + 1} was followed without a quorum")
    world.epochs = rosters[0].current.epoch

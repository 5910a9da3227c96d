"""A roster that changes under the same misfortune: silos ask for new keys, some approve, everybody may die at it.

A new key leaves the number of silos as it is, so that what is known of a sum is judged as in other schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cachefl_secure.errors import CacheflError
from cachefl_secure.federation.confirming import ROTATE_FILE, Shown, ask_for_new_key, confirm_change
from cachefl_secure.federation.coordinator_files import Candidate, CoordinatorFiles
from cachefl_secure.federation.enrolment import JoinRequest, Voucher
from cachefl_secure.federation.roster_files import pending_change, read_history
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import PublicKeyHex, SiloId
from cachefl_secure.plan import decode_toml
from cachefl_secure.protocol.messages import Member, roster_digest
from tests.simulation.disk import Killed
from tests.simulation.observer import Violation
from tests.simulation.world import COORDINATOR_ROOT, World


def changing(world: World) -> None:
    """An honest coordinator whose roster changes between its starts, or begins to."""
    for _ in range(world.rng.randrange(2, 5)):
        if world.rng.random() < 0.7:
            ask_and_approve(world)
        world.run_coordinator()
    check_rosters(world)


def ask_and_approve(world: World) -> None:
    """One silo asks for a new key; each of the others approves, with some luck."""
    silo = world.rng.choice(sorted(world.silos))
    files = world.silos[silo].files
    _typed(world, silo, lambda: ask_for_new_key(files))
    _typed(world, COORDINATOR_ROOT, lambda: _propose(world, silo, files))
    for other in sorted(world.silos):
        if other != silo and world.rng.random() < 0.85:
            _typed(world, other, lambda other=other: _confirm(world, world.silos[other].files))  # type: ignore[misc]


def _coordinator(world: World) -> CoordinatorFiles:
    return replace(world.template.coordinator, state=StateDir(world.root / COORDINATOR_ROOT))


def _propose(world: World, silo: SiloId, files: SiloFiles) -> None:
    asked = decode_toml(files.state.read(ROTATE_FILE), JoinRequest, file=ROTATE_FILE)
    assert asked.signature_by_old_key is not None
    voucher = Voucher(silo, bytes.fromhex(asked.signature_by_old_key), bytes.fromhex(asked.signature))
    member = Member(silo, PublicKeyHex(asked.public_key))
    _coordinator(world).propose([Candidate(member, "", Path(ROTATE_FILE), voucher)])


def _confirm(world: World, files: SiloFiles) -> None:
    coordinator = _coordinator(world)
    change = pending_change(coordinator.state, coordinator.rosters())
    if change is not None:
        confirm_change(files, Shown.of(change, read_history(files.state, files.plan)))


def _typed(world: World, party: str, command: Callable[[], object]) -> None:
    """A command of one party's operator; a disk may fail it, and power may go."""
    try:
        command()
    except Killed:
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
        try:
            silo.start()  # completes what was cut off
        except CacheflError as error:
            raise Violation(
                "I9", f"{silo.name} does not start under the roster that it followed: {error}"
            ) from error
        rosters.append(read_history(silo.files.state, silo.files.plan))
        own, held = silo.files.state.signing_key().public_key, rosters[-1].current.public_keys[silo.name]
        if own != held:
            raise Violation("I9", f"{silo.name} has another key than its roster names")
        if rosters[-1].current.epoch > rosters[0].current.epoch:
            raise Violation("I9", f"{silo.name} is ahead of the coordinator")
    for epoch in range(max(each.current.epoch for each in rosters)):
        if len({roster_digest(each.rosters[epoch]) for each in rosters if epoch < len(each.rosters)}) > 1:
            raise Violation("I9", f"two rosters of epoch {epoch + 1}")
    world.epochs = rosters[0].current.epoch

"""Changes of a small federation's roster, as its people make them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.confirming import confirm_change, show_change
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.enrolment import make_roster, sign_roster
from cachefl_secure.federation.inspection import open_chain
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.roster_change import RosterChange, RosterHistory, approve, with_approvals
from cachefl_secure.federation.roster_files import CHANGE_FILE
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.names import SiloId
from cachefl_secure.protocol.messages import Member, roster_digest
from cachefl_secure.transport.local_federation import run_local_rounds
from tests.small_federation import SmallFederation, join_with_random_features


def key_of(silo: Path) -> SigningKey:
    return SiloFiles.open(silo).state.signing_key()


def rosters_of(party: Path) -> RosterHistory:
    return open_chain(party).rosters


def chain_of(federation: SmallFederation) -> Chain:
    return CoordinatorFiles.open(federation.coordinator).chain()


def run(federation: SmallFederation, *left_out: str, number: int = 1) -> list[str]:
    """Rounds; returns what their operators were told."""
    said: list[str] = []
    present = [path for silo, path in federation.silos.items() if silo not in left_out]
    run_local_rounds(
        federation.coordinator, present, number, deadline_seconds=60.0, progress=silent, tell=said.append
    )
    return said


def newcomer(federation: SmallFederation, name: str, *, records: int = 10) -> Path:
    """A silo that has written its join request."""
    root = federation.coordinator.parent / name
    return join_with_random_features(root, federation.coordinator, SiloId(name), records, seed=len(name) + 70)


def propose(
    federation: SmallFederation, requests: Sequence[Path] = (), remove: Sequence[str] = ()
) -> RosterChange:
    """``requests``: files, or the directories of silos that joined."""
    files = CoordinatorFiles.open(federation.coordinator)
    asked = [path / "join-request.toml" if path.is_dir() else path for path in requests]
    return files.propose(files.candidates(asked), remove)


def confirm(federation: SmallFederation, silos: Iterable[str]) -> list[Path]:
    """These silos' operators approve what the coordinator proposes; the files they could hand over."""
    written = []
    for silo in silos:
        files = SiloFiles.open(federation.silos[SiloId(silo)])
        written.append(confirm_change(files, show_change(files, federation.coordinator / CHANGE_FILE)))
    return written


def with_silo(federation: SmallFederation, path: Path) -> SmallFederation:
    return SmallFederation(federation.coordinator, federation.silos | {SiloId(path.name): path})


def without_silo(federation: SmallFederation, *names: str) -> SmallFederation:
    kept = {silo: path for silo, path in federation.silos.items() if silo not in names}
    return SmallFederation(federation.coordinator, kept)


def copied(federation: SmallFederation, root: Path) -> SmallFederation:
    """All its directories, to be played with."""
    shutil.copytree(federation.coordinator.parent, root)
    silos = {silo: root / path.name for silo, path in federation.silos.items()}
    return SmallFederation(root / federation.coordinator.name, silos)


def forged_change(
    federation: SmallFederation,
    rosters: RosterHistory,
    members: Sequence[Member],
    approvers: Iterable[str] = (),
    *,
    epoch: int | None = None,
) -> RosterChange:
    """What a lying coordinator makes with its own key, and these silos' consent."""
    files, current = CoordinatorFiles.open(federation.coordinator), rosters.current
    number = current.epoch + 1 if epoch is None else epoch
    roster = make_roster(files.plan, members, epoch=number, previous=roster_digest(current))
    change = RosterChange(sign_roster(roster, files.state.signing_key()))
    given = [approve(roster, SiloId(s), key_of(federation.silos[SiloId(s)])) for s in approvers]
    return with_approvals(change, given)


def member(name: str, key: SigningKey | None = None) -> Member:
    return Member(SiloId(name), (key or SigningKey.generate()).public_key)

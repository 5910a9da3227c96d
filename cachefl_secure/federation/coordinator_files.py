"""A coordinator's directory, opened: its plan, who asks to be admitted, the change of the roster that waits,
and the rounds so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cachefl_secure.crypto.sign import fingerprint
from cachefl_secure.errors import ConfigError, PeerError
from cachefl_secure.federation.enrolment import (
    Voucher,
    make_roster,
    open_invite,
    read_join_request,
    sign_roster,
)
from cachefl_secure.federation.roster_change import RosterChange, RosterHistory, with_approvals
from cachefl_secure.federation.roster_files import (
    CHANGE_FILE,
    keep_pending,
    pending_change,
    read_approval,
    read_history,
    settle_rosters,
)
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir
from cachefl_secure.names import PublicKeyHex
from cachefl_secure.plan import FederationPlan
from cachefl_secure.protocol.messages import Member, roster_digest
from cachefl_secure.protocol.parameters import RoundParameters

if TYPE_CHECKING:
    from cachefl_secure.cache.model import CacheModel
    from cachefl_secure.federation.chain import Chain

INVITE_FILE = "invite.toml"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A silo that asks to be admitted or for a new key, with the fingerprint that its operator reads out."""

    member: Member
    fingerprint: str
    file: Path
    voucher: Voucher | None = None
    """By its old key, if it asks for a new one."""


@dataclass(frozen=True, slots=True)
class CoordinatorFiles:
    """A coordinator's directory, opened and checked."""

    state: StateDir
    plan: FederationPlan
    engine: str = ""
    """URL of what carries messages; empty: all parties are on one machine."""

    @classmethod
    def open(cls, root: Path) -> CoordinatorFiles:
        """
        Raises:
            ConfigError: not a coordinator's directory, or a file in it does not parse.
        """
        if not root.is_dir():
            raise ConfigError(str(root), "", "no such directory")
        if any((root / name).exists() for name in ("silo.toml", "join-request.toml", "ledger")):
            raise ConfigError(str(root), "", "no coordinator's directory, but (what is left of) a silo's")
        if not (root / INVITE_FILE).is_file():
            raise ConfigError(str(root), "", "no coordinator's directory; init makes one")
        if not StateDir(root).is_finished:
            raise ConfigError(str(root), "", "init was interrupted; run it again with the same directory")
        invite = open_invite(root / INVITE_FILE)
        return cls(StateDir(root), invite.plan, invite.engine)

    def candidates(self, requests: Sequence[Path]) -> list[Candidate]:
        """The silos behind these join requests, sorted by name.

        Raises:
            ConfigError: a request is unreadable, changed, or for another plan.
        """
        read = [(read_join_request(path, self.plan), path) for path in requests]
        made = [
            Candidate(asks.member, fingerprint(PublicKeyHex(asks.member.public_key)), path, asks.voucher)
            for asks, path in read
        ]
        return sorted(made, key=lambda candidate: candidate.member.silo)

    @property
    def has_roster(self) -> bool:
        return self.state.has(ROSTER_FILE)

    def admit(self, candidates: Sequence[Candidate]) -> int:
        """Signs the first roster, of exactly these silos; returns how many.

        Raises:
            ConfigError: too few, one twice, or a roster that silos have pinned exists already.
        """
        if self.has_roster:
            reason = "silos are admitted already; from now on the roster changes by `propose`"
            raise ConfigError(str(self.state.path(ROSTER_FILE)), "", reason)
        roster = make_roster(self.plan, [candidate.member for candidate in candidates])
        RoundParameters.derive(self.plan, len(roster.members), len(roster.members))
        self.state.write(ROSTER_FILE, sign_roster(roster, self.state.signing_key()))
        return len(roster.members)

    def rosters(self) -> RosterHistory:
        """All rosters so far.

        Raises:
            ConfigError: no silo has been admitted yet.
        """
        if not self.has_roster:
            raise ConfigError(str(self.state.root), "", "no silos yet: run `cachefl-secure admit` first")
        return read_history(self.state, self.plan)

    def propose(self, candidates: Sequence[Candidate], remove: Sequence[str] = ()) -> RosterChange:
        """Signs the next roster and keeps it until a quorum of the present silos approves; see ``roster_change``.

        Raises:
            ConfigError: a change waits already, one that is asked for cannot be, or nothing is asked for.
        """
        rosters = self.rosters()
        if pending_change(self.state, rosters) is not None:
            reason = "a change waits for approvals already; `cachefl-secure admit --withdraw` gives it up"
            raise ConfigError(str(self.state.path(CHANGE_FILE)), "", reason)
        members = {str(member.silo): member for member in rosters.current.members}
        for silo in remove:
            if members.pop(silo, None) is None:
                raise ConfigError("--remove", silo, "is not in the roster")
        for candidate in candidates:
            silo = candidate.member.silo
            if silo in members and candidate.voucher is None:
                reason = "is in the roster already; for a new key its operator runs `cachefl-secure rotate`"
                raise ConfigError(str(candidate.file), silo, reason)
            if silo not in members and candidate.voucher is not None:
                raise ConfigError(str(candidate.file), silo, "asks for a new key and is not in the roster")
            members.pop(silo, None)
        kept = [*members.values(), *(candidate.member for candidate in candidates)]
        if kept == list(rosters.current.members):
            raise ConfigError("admit", "", "nothing to change: give join requests, or --remove a silo")
        current = rosters.current
        roster = make_roster(self.plan, kept, epoch=current.epoch + 1, previous=roster_digest(current))
        vouchers = tuple(each.voucher for each in candidates if each.voucher is not None)
        change = RosterChange(sign_roster(roster, self.state.signing_key()), vouchers)
        try:
            rosters.check_proposal(change)
        except PeerError as error:
            raise ConfigError("admit", error.peer, error.reason) from None
        settle_rosters(self.state, rosters)  # the change rests on them
        keep_pending(self.state, change)
        return change

    def withdraw(self) -> bool:
        """Gives up the change that waits, also one that is damaged; says whether there was one.

        Who approved it approves no other change of this roster: see decision 0016.
        """
        rosters = self.rosters()
        try:
            waited = pending_change(self.state, rosters) is not None
        except ConfigError:
            waited = True
        self.state.remove(CHANGE_FILE)
        return waited

    def add_approvals(self, files: Sequence[Path]) -> RosterChange:
        """The change that waits, with the approvals in these files. It is followed in the next round.

        Raises:
            ConfigError: no change waits, or an approval is unreadable or not of this change.
        """
        rosters = self.rosters()
        change = pending_change(self.state, rosters)
        if change is None:
            raise ConfigError("--approval", "", "no change of the roster waits for approvals")
        for path in files:
            change = with_approvals(change, [read_approval(path)])
            try:
                rosters.check_proposal(change)
            except PeerError as error:
                raise ConfigError(str(path), error.peer, error.reason) from None
        keep_pending(self.state, change)
        return change

    def initial_model(self) -> CacheModel:
        """The cache of round 0, also before anybody is admitted."""
        from cachefl_secure.cache.model import load_cache

        return load_cache(self.state.path("models/0000.safetensors"))

    def chain(self) -> Chain:
        """The rounds so far, verified.

        Raises:
            ConfigError: no silo has been admitted yet.
        """
        from cachefl_secure.federation.chain import Chain

        return Chain(self.state, self.plan, self.rosters())

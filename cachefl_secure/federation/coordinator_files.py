"""A coordinator's directory, opened: its plan, who asks to be admitted, and the rounds so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cachefl_secure.crypto.sign import fingerprint
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.enrolment import (
    make_roster,
    read_invite,
    read_join_request,
    read_roster,
    sign_roster,
)
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir
from cachefl_secure.names import PublicKeyHex
from cachefl_secure.plan import FederationPlan
from cachefl_secure.protocol.messages import Member
from cachefl_secure.protocol.parameters import RoundParameters

if TYPE_CHECKING:
    from cachefl_secure.cache.model import CacheModel
    from cachefl_secure.federation.chain import Chain

INVITE_FILE = "invite.toml"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A silo that asks to be admitted, with the fingerprint that its operator reads out."""

    member: Member
    fingerprint: str
    file: Path


@dataclass(frozen=True, slots=True)
class CoordinatorFiles:
    """A coordinator's directory, opened and checked."""

    state: StateDir
    plan: FederationPlan

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
        return cls(StateDir(root), read_invite(root / INVITE_FILE))

    def candidates(self, requests: Sequence[Path]) -> list[Candidate]:
        """The silos behind these join requests, sorted by name.

        Raises:
            ConfigError: a request is unreadable, changed, or for another plan.
        """
        read = [(read_join_request(path, self.plan), path) for path in requests]
        made = [
            Candidate(member, fingerprint(PublicKeyHex(member.public_key)), path) for member, path in read
        ]
        return sorted(made, key=lambda candidate: candidate.member.silo)

    def admit(self, candidates: Sequence[Candidate]) -> int:
        """Signs the roster of exactly these silos; returns how many.

        Raises:
            ConfigError: too few, one twice, or a roster that silos have pinned exists already.
        """
        if self.state.has(ROSTER_FILE):
            reason = "silos are admitted already; changing the roster is not possible yet: run init anew"
            raise ConfigError(str(self.state.path(ROSTER_FILE)), "", reason)
        roster = make_roster(self.plan, [candidate.member for candidate in candidates])
        RoundParameters.derive(self.plan, len(roster.members), len(roster.members))
        self.state.write(ROSTER_FILE, sign_roster(roster, self.state.signing_key()))
        return len(roster.members)

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

        if not self.state.has(ROSTER_FILE):
            raise ConfigError(str(self.state.root), "", "no silos yet: run `cachefl-secure admit` first")
        return Chain(self.state, self.plan, read_roster(self.state, self.plan))

"""How a roster follows another: a full new one, agreed to by a quorum of the old one's members.

Every roster names the digest of the one before, so its own digest stands for the whole history. A party goes
from one to the next only if (the numbers stand in the code):

 (1) the coordinator signed the new roster for this plan
 (2) it follows the last one held: one epoch later, and it names that one's digest
 (3) at least a quorum of the old members stay, so that those left behind are too few to certify anything
 (4) a member that stays has its old key, or a new one that the old key vouches for
 (5) who is new has a name and a key that no earlier roster had: what left never returns
 (6) the plan can make a round with the new members
 (7) a quorum of the old members approved exactly this roster

A quorum is q = floor((N + f) / 2) + 1 of N members. Two quorums share more than f members, hence an honest
one, and an honest silo approves one roster of an epoch, ever: no two rosters follow the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec
from msgspec import Meta

from cachefl_secure.crypto.sign import SIGNATURE_BYTES, SigningKey, verify
from cachefl_secure.errors import BadSignature, ConfigError, PeerError
from cachefl_secure.federation.enrolment import Voucher, check_voucher, open_roster
from cachefl_secure.fields import Hex64
from cachefl_secure.names import COORDINATOR, Digest, PublicKeyHex, SiloId
from cachefl_secure.plan import FederationPlan
from cachefl_secure.protocol.messages import Member, Message, Roster, roster_digest
from cachefl_secure.protocol.parameters import MAX_SILOS, RoundParameters
from cachefl_secure.wording import counted

_APPROVAL_PURPOSE = "cachefl-secure/roster-approval/1"

MAX_CHANGE_BYTES = 1 << 20  # a roster, and a signature or three for each of its silos


class Approval(Message, frozen=True):
    """A member of a roster agrees that the named one follows it."""

    silo: SiloId
    roster_digest: Hex64
    """Of the roster that follows; it names the one that it follows."""
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class RosterChange(Message, frozen=True):
    """The next roster, with what speaks for it. A proposal while there is no quorum of approvals."""

    roster: bytes
    """As ``enrolment.sign_roster`` makes it."""
    vouchers: Annotated[tuple[Voucher, ...], Meta(max_length=MAX_SILOS)] = ()
    """Of the silos that have a new key."""
    approvals: Annotated[tuple[Approval, ...], Meta(max_length=MAX_SILOS)] = ()
    """Of different members of the roster before."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What a change does, for people. Members as in the new roster, removed ones as in the old."""

    added: tuple[Member, ...]
    removed: tuple[Member, ...]
    rekeyed: tuple[Member, ...]

    @classmethod
    def between(cls, old: Roster, new: Roster) -> Difference:
        before, after = old.public_keys, new.public_keys
        return cls(
            added=tuple(member for member in new.members if member.silo not in before),
            removed=tuple(member for member in old.members if member.silo not in after),
            rekeyed=tuple(m for m in new.members if before.get(m.silo, m.public_key) != m.public_key),
        )

    def in_words(self) -> str:
        parts = (("added", self.added), ("removed", self.removed), ("new key", self.rekeyed))
        said = (f"{what}: {', '.join(m.silo for m in members)}" for what, members in parts if members)
        return "; ".join(said)


def approve(roster: Roster, silo: SiloId, key: SigningKey) -> Approval:
    """This silo agrees to this roster. Keep it on disk before it leaves, and make no other for the epoch."""
    digest = roster_digest(roster)
    return Approval(silo, digest, key.sign(_APPROVAL_PURPOSE, digest.encode()))


def check_approval(approval: Approval, old: Roster, new: Roster) -> None:
    """
    Raises:
        BadSignature: not by a member of the old roster, or of another change.
    """
    key = old.public_keys.get(approval.silo)
    if key is None:
        raise BadSignature(approval.silo, "approves a change of a roster that lacks it")
    if approval.roster_digest != roster_digest(new):
        raise BadSignature(approval.silo, "approves another change")
    verify(key, _APPROVAL_PURPOSE, approval.roster_digest.encode(), approval.signature, peer=approval.silo)


def change_to_bytes(change: RosterChange) -> bytes:
    return msgspec.msgpack.encode(change)


def change_from_bytes(raw: bytes) -> RosterChange:
    """
    Raises:
        PeerError: not a change of a roster. Nothing in it is verified yet.
    """
    if len(raw) > MAX_CHANGE_BYTES:
        raise PeerError(COORDINATOR, f"a change of the roster of {len(raw)} bytes")
    try:
        return msgspec.msgpack.decode(raw, type=RosterChange)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        raise PeerError(COORDINATOR, "not a change of the roster") from None


@dataclass(frozen=True, slots=True)
class RosterHistory:
    """Every roster of a federation in order, each verified to follow the one before. Grows by ``follow`` only."""

    plan: FederationPlan
    rosters: tuple[Roster, ...]
    """Epochs 1, 2, ..."""
    changes: tuple[RosterChange, ...] = ()
    """How epochs 2, 3, ... came about."""

    @classmethod
    def first(cls, plan: FederationPlan, roster: Roster) -> RosterHistory:
        """
        Raises:
            PeerError: that roster is not the first of its federation.
        """
        if roster.epoch != 1:
            raise PeerError(COORDINATOR, f"the history begins with epoch {roster.epoch}")
        return cls(plan, (roster,))

    @property
    def current(self) -> Roster:
        return self.rosters[-1]

    @property
    def quorum(self) -> int:
        """Approvals that the next change needs."""
        return quorum_of(self.plan, self.current)

    def named(self, digest: str) -> Roster | None:
        """The roster with this digest, if it is one of them."""
        return next((roster for roster in self.rosters if roster_digest(roster) == digest), None)

    def all_silos(self) -> list[SiloId]:
        """Everybody who is or was a member, sorted."""
        return sorted({member.silo for roster in self.rosters for member in roster.members})

    def keys_of(self, silo: SiloId) -> list[PublicKeyHex]:
        """The keys that it had and has, oldest first."""
        found = (roster.public_keys.get(silo) for roster in self.rosters)
        return list(dict.fromkeys(key for key in found if key is not None))  # none ever returns

    def removal_of(self, silo: SiloId) -> Roster | None:
        """The first roster without this silo after one with it."""
        for before, after in zip(self.rosters, self.rosters[1:], strict=False):
            if silo in before.public_keys and silo not in after.public_keys:
                return after
        return None

    def check_proposal(self, change: RosterChange) -> Roster:
        """The roster that the change leads to: (1) to (6), and the approvals that it has, however few.

        Raises:
            PeerError: names what does not hold.
        """
        new, old = open_roster(change.roster, self.plan), self.current  # (1)
        if new.federation_id != old.federation_id:
            raise PeerError(COORDINATOR, "a roster of another federation")
        if (new.epoch, new.previous) != (old.epoch + 1, roster_digest(old)):  # (2)
            raise PeerError(COORDINATOR, f"a roster that does not follow epoch {old.epoch} as held here")
        self._check_members(old, new, {voucher.silo: voucher for voucher in change.vouchers})
        try:
            RoundParameters.derive(self.plan, len(new.members), len(new.members))  # (6)
        except ConfigError as error:
            raise PeerError(COORDINATOR, f"a roster of {len(new.members)} silos: {error.reason}") from None
        signers = [approval.silo for approval in change.approvals]
        if len(set(signers)) != len(signers):
            raise PeerError(COORDINATOR, "a silo approves twice")
        for approval in change.approvals:
            check_approval(approval, old, new)
        return new

    def follow(self, change: RosterChange) -> RosterHistory:
        """The history with one roster more: (1) to (7).

        Raises:
            PeerError: names what does not hold.
        """
        new = self.check_proposal(change)
        if len(change.approvals) < self.quorum:  # (7)
            reason = f"{counted(len(change.approvals), 'approval')} of the change of the roster, it needs {self.quorum}"
            raise PeerError(COORDINATOR, reason)
        return replace(self, rosters=(*self.rosters, new), changes=(*self.changes, change))

    def _check_members(self, old: Roster, new: Roster, vouchers: Mapping[SiloId, Voucher]) -> None:
        before = old.public_keys
        kept = [member for member in new.members if member.silo in before]
        if len(kept) < self.quorum:  # (3)
            reason = f"a change that keeps {len(kept)} silos, {self.quorum} must stay: add first, remove in a later change"
            raise PeerError(COORDINATOR, reason)
        for member in new.members:
            if before.get(member.silo) == member.public_key:
                continue
            if any(member.public_key in roster.public_keys.values() for roster in self.rosters):  # (5)
                raise PeerError(COORDINATOR, f"{member.silo} comes with a key that was used before")
            if member.silo in before:  # (4)
                if (voucher := vouchers.get(member.silo)) is None:
                    raise PeerError(COORDINATOR, f"nobody vouches for the new key of {member.silo}")
                check_voucher(voucher, before[member.silo], member, self.plan)
            elif any(member.silo in roster.public_keys for roster in self.rosters):  # (5)
                raise PeerError(COORDINATOR, f"{member.silo} was removed; a name does not return")


def quorum_of(plan: FederationPlan, roster: Roster) -> int:
    """Members of the roster of whom two such groups share an honest one."""
    return RoundParameters.derive(plan, len(roster.members), len(roster.members)).quorum


def with_approvals(change: RosterChange, approvals: Iterable[Approval]) -> RosterChange:
    """The change with these approvals as well, sorted by silo, the first of each."""
    held = {approval.silo: approval for approval in change.approvals}
    for approval in approvals:
        held.setdefault(approval.silo, approval)
    return msgspec.structs.replace(change, approvals=tuple(held[silo] for silo in sorted(held)))


def spoken(digest: Digest) -> str:
    """128 bits of a digest as eight groups of four hex digits, to be read aloud."""
    return " ".join(digest[i : i + 4] for i in range(0, 32, 4))

"""What a silo's operator has to say about the roster: that a change of it is right, or that its own key goes.

Approving is for people. The coordinator's word puts a proposal before the operator and never more. A silo approves
one change of a roster: on disk before it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cachefl_secure.crypto.sign import fingerprint
from cachefl_secure.crypto.spoken import check_heard
from cachefl_secure.errors import ConfigError, PeerError
from cachefl_secure.federation.enrolment import write_join_request
from cachefl_secure.federation.last_heard import Heard
from cachefl_secure.federation.roster_change import (
    MAX_CHANGE_BYTES,
    Approval,
    Difference,
    RosterChange,
    RosterHistory,
    approve,
    change_from_bytes,
    check_approval,
    spoken,
)
from cachefl_secure.federation.roster_files import (
    CHANGE_FILE,
    approval_file,
    approval_of,
    keep_approval,
    pending_change,
    read_history,
)
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir
from cachefl_secure.names import Digest, PublicKeyHex, SiloId
from cachefl_secure.protocol.messages import Roster, roster_digest

ROTATE_FILE = "rotate-request.toml"
_LOCK = ".confirm.lock"
"""Of what operators say, beside the lock of the service that may be at work."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A verified proposal, as a silo's operator sees it before approving."""

    change: RosterChange
    roster: Roster
    epoch: int
    difference: Difference
    quorum: int
    """Approvals that it needs."""
    spoken: str
    """Names the whole change: the same at every silo, or the coordinator shows different ones."""

    @classmethod
    def of(cls, change: RosterChange, rosters: RosterHistory) -> Shown:
        """
        Raises:
            PeerError: the proposal breaks a rule of ``roster_change``.
        """
        roster = rosters.check_proposal(change)
        return cls(
            change=change,
            roster=roster,
            epoch=roster.epoch,
            difference=Difference.between(rosters.current, roster),
            quorum=rosters.quorum,
            spoken=spoken(roster_digest(roster)),
        )

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, silo, fingerprint) of everybody whom the change concerns."""
        kinds = (
            ("added", self.difference.added),
            ("removed", self.difference.removed),
            ("new key", self.difference.rekeyed),
        )
        return [
            (what, str(member.silo), fingerprint(PublicKeyHex(member.public_key)))
            for what, members in kinds
            for member in members
        ]


def show_change(files: SiloFiles, proposal: Path | None = None) -> Shown:
    """The change in the coordinator's file, or the one that came with the last round.

    Raises:
        ConfigError: there is none, it is unreadable, or it does not follow the roster that this silo holds.
    """
    rosters = _rosters(files)
    if proposal is None:
        change = pending_change(files.state, rosters)
        if change is None:
            raise ConfigError(str(files.state.root), "", "no change of the roster waits for this silo")
        return Shown.of(change, rosters)
    try:
        with proposal.open("rb") as file:
            return Shown.of(change_from_bytes(file.read(MAX_CHANGE_BYTES + 1)), rosters)
    except PeerError as error:
        raise ConfigError(str(proposal), error.peer, error.reason) from None


def check_expected(shown: Shown, expect: str) -> None:
    """
    Raises:
        ConfigError: the operator heard another change read out, or mistyped it.
    """
    where = ("--expect", f"the change to epoch {shown.epoch}")
    check_heard(expect, shown.spoken, where=where, otherwise="do not confirm, call the other silos")


def confirm_change(files: SiloFiles, shown: Shown) -> Path:
    """Approves the change for this silo; its signature travels when the coordinator asks next, or as the file returned.

    Raises:
        ConfigError: this silo approved another change to this epoch, or followed one; or nothing was written.
    """
    with files.state.lock(_LOCK):  # not the service's lock: it may be at work
        return _confirm(files, shown, _rosters(files))


def _confirm(files: SiloFiles, shown: Shown, rosters: RosterHistory) -> Path:
    if shown.epoch != rosters.current.epoch + 1:
        raise ConfigError(str(files.state.root), "", f"this silo holds epoch {rosters.current.epoch} by now")
    made = approve(shown.roster, files.silo, files.state.signing_key())
    held = approval_of(files.state, shown.epoch)
    if held is not None and held.roster_digest != made.roster_digest:
        reason = f"this silo approved another change to epoch {shown.epoch}, and approves one only"
        raise ConfigError(str(files.state.path(approval_file(shown.epoch))), "", reason)
    try:
        check_approval(made, rosters.current, shown.roster)
    except PeerError as error:
        raise ConfigError(str(files.state.root), "", f"this silo cannot approve: {error.reason}") from None
    keep_approval(files.state, made, shown.epoch)  # also one that is there: its last sync may have failed
    return files.state.path(approval_file(shown.epoch))


def ask_for_new_key(files: SiloFiles) -> tuple[Path, str]:
    """A request for a new key in place of this silo's present one, and the new one's fingerprint.

    Both sign it. The present one stays in use until the roster names the new one; asking again asks the same.

    Raises:
        ConfigError: this silo is in no roster, shares its ledger, or something was not written.
    """
    with files.state.lock(_LOCK):
        own, rosters = files.state.signing_key(), _rosters(files)
        if rosters.current.public_keys.get(files.silo) != own.public_key:
            raise ConfigError(str(files.state.root), "", "is not in the present roster with its present key")
        if len(files.ledger_sharers()) > 1:
            reason = "shares its ledger with another federation's silo: both are signed under one key, which cannot change"
            raise ConfigError(str(files.state.root), "ledger", reason)
        key = files.state.make_next_signing_key()
        files.state.write(ROTATE_FILE, write_join_request(files.silo, files.plan, key, old_key=own))
        return files.state.path(ROTATE_FILE), fingerprint(key.public_key)


def ready_approval(files: SiloFiles, rosters: RosterHistory) -> Approval | None:
    """What this silo's operator approved as the next roster, if anything: to be handed over, and safe by then.

    Raises:
        ConfigError: the approval is damaged, or was not written again.
    """
    epoch = rosters.current.epoch + 1
    approval = approval_of(files.state, epoch)
    if approval is None:
        return None
    with ExitStack() as held:
        try:
            held.enter_context(files.state.lock(_LOCK))
        except ConfigError:
            return None  # the operator is confirming just now: with the next hello
        # Its last sync may have failed: lost after it left, another change to this epoch could be approved.
        keep_approval(files.state, approval, epoch)
    return approval


def change_at_silo(files: SiloFiles, rosters: RosterHistory) -> str:
    """The change that waits and for whom, in words for the silo's operator; empty if none does."""
    change, epoch = pending_change(files.state, rosters), rosters.current.epoch + 1
    if (approval := approval_of(files.state, epoch)) is not None:
        named = spoken(Digest(approval.roster_digest))
        return f"to epoch {epoch}: this silo approves {named}; it waits for the others"
    if change is None:
        return ""
    shown = Shown.of(change, rosters)
    words = shown.difference.in_words()
    return f"to epoch {epoch} ({words}): waits for you, look at it with `cachefl-secure confirm`"


def new_key_at_silo(files: SiloFiles, rosters: RosterHistory) -> str:
    """The key that this silo asked for and what it waits for, in words for its operator; empty if it asked for none."""
    key, change = files.state.next_signing_key(), pending_change(files.state, rosters)
    # One that was taken may be left: a crash came before it was removed.
    if key is None or key.public_key == files.state.signing_key().public_key:
        return ""
    asked = f"{fingerprint(key.public_key)}, asked for by `rotate`"
    if rosters.current.public_keys.get(files.silo) == key.public_key:
        return f"{asked}: in the roster, taken when this silo is started next"
    if change is not None and rosters.check_proposal(change).public_keys.get(files.silo) == key.public_key:
        return f"{asked}: proposed for epoch {rosters.current.epoch + 1}, waits for the silos to approve"
    return f"{asked}: waits for the coordinator to `admit` {ROTATE_FILE}; the old key is in use until then"


def change_at_coordinator(state: StateDir, rosters: RosterHistory, heard: Mapping[SiloId, Heard]) -> str:
    """The same for the coordinator's. Asked is who was brought just this change."""
    change = pending_change(state, rosters)
    if change is None:
        return ""
    shown, given = Shown.of(change, rosters), {approval.silo for approval in change.approvals}
    words = (
        f"to epoch {shown.epoch} ({shown.difference.in_words()}): {len(given)} of {shown.quorum} approvals"
    )
    if len(given) >= shown.quorum:
        return f"{words}; it is followed in the next `round`, or at once with `round -n 0`"
    offered = roster_digest(shown.roster)
    missing = sorted(set(rosters.current.public_keys) - given)
    asked = [silo for silo in missing if silo in heard and heard[silo].shown == offered]
    unasked = [silo for silo in missing if silo not in asked]
    if asked:
        words += f"; asked and silent: {', '.join(asked)}"
    if unasked:
        words += (
            f"; not asked yet: {', '.join(unasked)}: the next `round` brings it to them, `round -n 0` at once and "
            f"without a round, or hand them {state.path(CHANGE_FILE)}"
        )
    return words


def _rosters(files: SiloFiles) -> RosterHistory:
    if not files.state.has(ROSTER_FILE):
        raise ConfigError(str(files.state.root), "", "has not been admitted yet: no roster to change")
    return read_history(files.state, files.plan)

"""A party's rosters on disk: all that it followed, and the change that waits for approvals.

    roster.bin            the first, as the coordinator signed it
    rosters/0002.bin      the change to epoch 2, with the approvals that passed it, and so on; these never change
    roster-change.bin     the change that waits: at the coordinator with the approvals so far, at a silo as it came
    approvals/0002.bin    at a silo: that it approves a certain change to epoch 2, and therefore no other, ever

A party stands in the last epoch without a gap. A silo that joins late holds them all, from the first.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cachefl_secure.errors import ConfigError, PeerError
from cachefl_secure.federation.enrolment import open_roster, read_roster
from cachefl_secure.federation.roster_change import (
    Approval,
    RosterChange,
    RosterHistory,
    change_from_bytes,
    change_to_bytes,
)
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir
from cachefl_secure.plan import FederationPlan

CHANGE_FILE = "roster-change.bin"
_MAX_APPROVAL_BYTES = 1 << 10


def roster_file(epoch: int) -> str:
    """Of an epoch after the first."""
    return f"rosters/{epoch:04d}.bin"


def read_history(state: StateDir, plan: FederationPlan) -> RosterHistory:
    """Every roster that this party followed, each verified again.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    history = RosterHistory.first(plan, read_roster(state, plan))
    while state.has(name := roster_file(history.current.epoch + 1)):
        try:
            history = history.follow(change_from_bytes(state.read(name)))
        except PeerError as error:
            raise ConfigError(str(state.path(name)), "", f"damaged: {error.reason}") from None
    return history


def keep_change(state: StateDir, history: RosterHistory) -> None:
    """The last roster of the history. Durable when this returns: this party never goes back."""
    state.write(roster_file(history.current.epoch), change_to_bytes(history.changes[-1]))


def settle_rosters(state: StateDir, history: RosterHistory) -> None:
    """Writes the first roster and the changes that led to the present one once more. Durable when this returns.

    A process that starts after a last sync that failed sees the new file, which the next loss of power takes away;
    a key that was replaced by then, or a signature under that roster, would be left without it. While there is only a first roster, losing it loses no more.
    """
    if history.changes:
        state.write(ROSTER_FILE, state.read(ROSTER_FILE))
    for epoch, change in enumerate(history.changes, start=2):
        state.write(roster_file(epoch), change_to_bytes(change))


def pending_change(state: StateDir, history: RosterHistory) -> RosterChange | None:
    """The change that waits for approvals, verified in all but those that are missing.

    One that no longer follows the current roster is over and counts as none.

    Raises:
        ConfigError: the file is damaged.
    """
    if not state.has(CHANGE_FILE):
        return None
    try:
        change = change_from_bytes(state.read(CHANGE_FILE))
        if open_roster(change.roster, history.plan).epoch <= history.current.epoch:
            return None
        history.check_proposal(change)
    except PeerError as error:
        raise ConfigError(str(state.path(CHANGE_FILE)), "", f"damaged: {error.reason}") from None
    return change


def keep_pending(state: StateDir, change: RosterChange) -> None:
    """Durable when this returns."""
    content = change_to_bytes(change)
    if not state.has(CHANGE_FILE) or state.read(CHANGE_FILE) != content:
        state.write(CHANGE_FILE, content)


def approval_file(epoch: int) -> str:
    return f"approvals/{epoch:04d}.bin"


def approval_of(state: StateDir, epoch: int) -> Approval | None:
    """What this silo approved as the roster of this epoch, if anything.

    Raises:
        ConfigError: the file is damaged. Nothing may be approved for this epoch until a person has looked.
    """
    name = approval_file(epoch)
    return _open_approval(state.read(name), str(state.path(name))) if state.has(name) else None


def read_approval(path: Path) -> Approval:
    """
    Raises:
        ConfigError: not an approval. Its signature is not verified yet.
    """
    try:
        with path.open("rb") as file:
            return _open_approval(file.read(_MAX_APPROVAL_BYTES), str(path))
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None


def _open_approval(raw: bytes, file: str) -> Approval:
    try:
        return msgspec.msgpack.decode(raw, type=Approval)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        raise ConfigError(file, "", "not an approval of a change of the roster") from None


def keep_approval(state: StateDir, approval: Approval, epoch: int) -> None:
    """Durable when this returns; only then may the approval leave."""
    state.write(approval_file(epoch), msgspec.msgpack.encode(approval))

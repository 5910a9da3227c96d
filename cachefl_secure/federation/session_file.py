"""A silo's session on its disk: what a restart goes on from, sealed, gone when the round is.

rounds/0007/attempt   the last attempt that was entered, as text; written before anything is said in it
rounds/0007/session   the journal of that attempt, sealed, mode 0600; written before every reply
"""

from __future__ import annotations

from cachefl_secure.crypto.seal import open_at_rest, seal_at_rest
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.state_dir import StateDir, round_file, round_numbers
from cachefl_secure.names import Digest
from cachefl_secure.protocol.journal import SessionJournal, journal_from_bytes, journal_to_bytes

_PURPOSE = "cachefl-secure/session/1"
_ATTEMPT, _SESSION = "attempt", "session"


def enter_attempt(state: StateDir, round_number: int, attempt: int) -> None:
    """From now on no attempt up to this one is entered. Durable when this returns."""
    state.write(round_file(round_number, _ATTEMPT), str(attempt).encode())


def last_attempt(state: StateDir, round_number: int) -> int:
    """The last attempt of the round that was entered, 0 before the first.

    Raises:
        ConfigError: the file is damaged; the round cannot be entered until a person has looked.
    """
    name = round_file(round_number, _ATTEMPT)
    if not state.has(name):
        return 0
    content = state.read(name)
    if not content.isdigit():
        raise ConfigError(str(state.path(name)), "", "not the number of an attempt")
    return int(content)


def save_journal(state: StateDir, journal: SessionJournal) -> None:
    """Durable when this returns.

    Raises:
        ConfigError: not written; the reply must not leave.
    """
    round_number, plan = journal.manifest.round, journal.manifest.plan_digest
    sealed = seal_at_rest(state.storage_key(), _purpose(plan, round_number), journal_to_bytes(journal))
    state.write(round_file(round_number, _SESSION), sealed, private=True)


def open_journal(state: StateDir, plan: Digest) -> SessionJournal | None:
    """The journal of the last attempt that this silo entered, if it is unfinished business.

    Raises:
        ConfigError: torn, damaged or not this silo's. The attempt goes on without this silo.
    """
    latest = max(round_numbers(state), default=0)
    name = round_file(latest, _SESSION)
    if not state.has(name):
        return None
    try:
        journal = journal_from_bytes(
            open_at_rest(state.storage_key(), _purpose(plan, latest), state.read(name))
        )
    except ValueError as error:
        reason = f"{error}; this silo drops out of the attempt, the next one begins anew"
        raise ConfigError(str(state.path(name)), "", reason) from None
    # An older one was left behind when the next attempt was entered: its time is over.
    is_current = (journal.manifest.round, journal.manifest.attempt) == (latest, last_attempt(state, latest))
    return journal if is_current else None


def discard_journals(state: StateDir, until_round: int) -> None:
    """The secrets of rounds that are over. Flash storage may keep old blocks (limit N6)."""
    for number in round_numbers(state):
        if number <= until_round:
            state.remove(round_file(number, _SESSION))


def _purpose(plan: Digest, round_number: int) -> str:
    # One round's file does not open as another's.
    return f"{_PURPOSE}/{plan}/{round_number}"

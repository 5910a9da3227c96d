"""The survivor set that a silo signed, on its disk: one per attempt, also across restarts.

rounds/0007/certified   attempt and digest of the statement, as text; written before the signature leaves
"""

from __future__ import annotations

from cachefl_secure.errors import ConfigError, RecordRejected, SurvivorSetRejected
from cachefl_secure.federation.record import RoundRecord, certified_statement
from cachefl_secure.federation.state_dir import StateDir, round_file
from cachefl_secure.names import COORDINATOR, Digest

_NAME = "certified"


def note_certified(state: StateDir, round_number: int, attempt: int, statement: Digest) -> None:
    """Durable when this returns. The same statement again changes nothing.

    Raises:
        SurvivorSetRejected: another statement was signed in this attempt, or one in a later attempt.
        ConfigError: not written; the signature must not leave.
    """
    signed = signed_statement(state, round_number)
    if signed == (attempt, statement):
        return
    if signed is not None and signed[0] >= attempt:
        raise SurvivorSetRejected(COORDINATOR, f"attempt {signed[0]} has a signed survivor set already")
    state.write(round_file(round_number, _NAME), f"{attempt} {statement}\n".encode())


def signed_statement(state: StateDir, round_number: int) -> tuple[int, Digest] | None:
    """(attempt, statement) of the last signature in this round, if there is one.

    Raises:
        ConfigError: the file is damaged. Nothing may be signed in this round until a person has looked.
    """
    name = round_file(round_number, _NAME)
    if not state.has(name):
        return None
    attempt, _, statement = state.read(name).decode("ascii", "replace").strip().partition(" ")
    if not attempt.isdecimal() or len(statement) != 64:
        raise ConfigError(str(state.path(name)), "", "not an attempt and the digest of a statement")
    return int(attempt), Digest(statement)


def check_against_signed(state: StateDir, record: RoundRecord) -> None:
    """Step (7) of a record, from disk: the certified statement is the one that this silo signed.

    Raises:
        RecordRejected: it signed another in the same attempt.
    """
    signed = signed_statement(state, record.round)
    if signed is not None and signed[0] == record.attempt and signed[1] != certified_statement(record):
        raise RecordRejected(7, "another certificate than the one this silo signed for")

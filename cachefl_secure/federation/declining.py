"""Why a silo does not answer, in words out of a closed set: what the coordinator is told of an error."""

from __future__ import annotations

from cachefl_secure.errors import (
    ConfigError,
    LedgerError,
    LedgerRolledBack,
    PrivacyError,
    ProtocolError,
    RecordRejected,
)
from cachefl_secure.federation.letters import Reason
from cachefl_secure.federation.silo_attempt import UpdateSpent

# The most specific class first: the first match decides.
_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (PrivacyError, "budget-exhausted"),
    (RecordRejected, "record-rejected"),
    (ProtocolError, "protocol-error"),
    (LedgerRolledBack, "ledger-rolled-back"),
    (ConfigError, "storage-failed"),
    (LedgerError, "storage-failed"),
    (OSError, "storage-failed"),
)


class Decline(Exception):
    """This silo will not answer, by a rule of its own; ``reason`` is what the coordinator is told."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


def reason_of(error: Exception) -> Reason:
    """What the coordinator is told. Details stay with this silo's operator."""
    if isinstance(error, Decline):
        return error.reason
    if isinstance(error, UpdateSpent):
        return "update-already-released"
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return "internal-error"

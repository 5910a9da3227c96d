"""Every error of the library, by fault: who caused it, and whether trying again can help.

Errors carry fields, not advice. Words, hints and exit codes live in ``cachefl_secure_cli.failures``.
No field may hold a secret, a feature or an update; lengths, digests and names are enough.
"""

from __future__ import annotations

from cachefl_secure.wording import counted

OPTIONS = "options"
"""``ConfigError.file`` where a choice is wrong that stands in no file: ``field`` is its name, as Python has it."""


class CacheflError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(CacheflError):
    """The operator's input is wrong: a file, one field of it, and why. Retry after editing."""

    def __init__(self, file: str, field: str, reason: str) -> None:
        super().__init__(file, field, reason)
        self.file, self.field, self.reason = file, field, reason

    def __str__(self) -> str:
        place = f"{self.file}: {self.field}" if self.field else self.file
        return f"{place}: {self.reason}"


class ProtocolError(CacheflError):
    """Abstract: the conversation went wrong."""


class LocalProtocolError(ProtocolError):
    """We broke the protocol ourselves: a bug, never to be retried."""


class PeerError(ProtocolError):
    """A peer sent something that the protocol forbids."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(peer, reason)
        self.peer, self.reason = peer, reason

    def __str__(self) -> str:
        return f"{self.peer}: {self.reason}"


class MalformedMessage(PeerError):
    """Bytes that are no message of this version."""


class UnexpectedMessage(PeerError):
    """A message that is not legal in the present state."""


class BadSignature(PeerError):
    """A signature that does not verify under the pinned key."""


class SurvivorSetRejected(PeerError):
    """A survivor set that this silo must not answer."""


class SharesRejected(PeerError):
    """The shares of a secret do not give what its owner committed to: the owner dealt badly, or holders lie."""

    def __init__(self, suspects: tuple[str, ...]) -> None:
        super().__init__(suspects[0], f"no shares fit its commitment; suspects: {', '.join(suspects)}")
        self.suspects = suspects


class RoundAborted(ProtocolError):
    """Nobody's fault: fewer silos than the threshold. A legal ending; the next attempt may succeed."""

    def __init__(self, present: int, threshold: int) -> None:
        super().__init__(present, threshold)
        self.present, self.threshold = present, threshold

    def __str__(self) -> str:
        return f"{counted(self.present, 'silo')} present, threshold {self.threshold}"


class PrivacyError(CacheflError):
    """Abstract: a privacy rule forbids it."""


class BudgetExhausted(PrivacyError):
    """The next spend would pass a cap. The numbers are epsilons of one view, at the ledger's delta.

    ``where`` names the files that hold the cap, if whoever raises it knows them.
    """

    def __init__(
        self, spent: float, asked: float, cap: float, view: str, where: tuple[str, ...] = ()
    ) -> None:
        super().__init__(spent, asked, cap, view, where)
        self.spent, self.asked, self.cap, self.view, self.where = spent, asked, cap, view, where

    def __str__(self) -> str:
        text = (
            f"has spent {self.spent:.4g} of {self.cap:.4g} of {self.view} epsilon; "
            f"another round would make {self.asked:.4g}"
        )
        return text + (
            f"; the cap is epsilon_cap_{self.view} in {' and '.join(self.where)}" if self.where else ""
        )


class CohortExhausted(PrivacyError):
    """Too few silos are left whose caps allow another round. All that happened before stands."""

    def __init__(self, exhausted: int, left: int, needed: int) -> None:
        super().__init__(exhausted, left, needed)
        self.exhausted, self.left, self.needed = exhausted, left, needed

    def __str__(self) -> str:
        reached = "has reached its cap" if self.exhausted == 1 else "have reached their caps"
        left = f"{self.left} {'is' if self.left == 1 else 'are'} left"
        return f"{counted(self.exhausted, 'silo')} {reached}; {left}, a round needs {self.needed}"


class UnaccountedMechanism(PrivacyError):
    """A mechanism kind that no accountant of this version knows. It costs infinity."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    def __str__(self) -> str:
        return f"unaccounted mechanism {self.kind!r}"


class LedgerError(CacheflError):
    """Abstract: the ledger cannot be trusted as it is."""


class LedgerCorrupt(LedgerError):
    """An entry fails a check: damaged disk or tampering. ``entry`` counts from 0."""

    def __init__(self, file: str, entry: int, reason: str) -> None:
        super().__init__(file, entry, reason)
        self.file, self.entry, self.reason = file, entry, reason

    def __str__(self) -> str:
        return f"{self.file}: entry {self.entry}: {self.reason}"


class LedgerRolledBack(LedgerError):
    """The ledger ends before, or differs from, a head that somebody else witnessed: ``witness`` names it.

    Proof against the ledger's owner only if its owner signed that head; a record alone is the coordinator's word.
    """

    def __init__(
        self, file: str, head: str, witnessed: str, witness: str = "a receipt of its owner or a record"
    ) -> None:
        super().__init__(file, head, witnessed, witness)
        self.file, self.head, self.witnessed, self.witness = file, head, witnessed, witness

    def __str__(self) -> str:
        return (
            f"{self.file}: head {self.head[:16]} does not extend the witnessed {self.witnessed[:16]}, "
            f"named in {self.witness}"
        )


class RecordRejected(CacheflError):
    """A round record fails a numbered step of its verification."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step, self.reason = step, reason

    def __str__(self) -> str:
        return f"step {self.step}: {self.reason}"


class TransportError(CacheflError):
    """The network or a peer's process is away. Retry."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(peer, reason)
        self.peer, self.reason = peer, reason

    def __str__(self) -> str:
        return f"{self.peer}: {self.reason}"


class PlaceUnusable(TransportError):
    """A place for messages that cannot be written, read and listed, found out before anything rests on it."""


class WrongPlace(TransportError):
    """A place for messages that holds nothing of this federation: another one, or a share that is not mounted."""


class MissingExtra(CacheflError):
    """What was asked for needs packages that are optional: ``pip install 'cachefl-secure[extra]'``."""

    def __init__(self, extra: str, reason: str = "not installed") -> None:
        super().__init__(extra, reason)
        self.extra, self.reason = extra, reason

    def __str__(self) -> str:
        return f"the extra {self.extra!r} is needed: {self.reason}"

"""A silo's privacy ledger on disk: charge first and durably, then train; never a refund.

One signed line per event, appended and fsynced (of nine ways to write, this and tmp + fsync + rename +
fsync of the directory survived every enumerated crash state). What a crash leaves of an unfinished
append is cut off on opening: that charge was never confirmed, so nothing was trained on it. A last line
that is whole but lacks its newline counts, and any other damage is an error.

The file alone cannot show that its tail was removed while the program was away. The head goes into every
signed round record; ``verify_ledger`` and ``Ledger.open`` take such heads as anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock

import cachefl_secure
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import BudgetExhausted, LocalProtocolError, PeerError, UnaccountedMechanism
from cachefl_secure.names import COORDINATOR, Digest, FederationId, PublicKeyHex, SiloId
from cachefl_secure.privacy import append_only, entries
from cachefl_secure.privacy.accounting import Cost, accountant_name, is_too_coarse
from cachefl_secure.privacy.entries import AnyBody, EntryRejected, Randomness, exact
from cachefl_secure.privacy.ledger_report import LedgerReport, Spend
from cachefl_secure.privacy.mechanism import View, mechanism_fields
from cachefl_secure.privacy.terms import Terms
from cachefl_secure.privacy.verification import (
    Anchor,
    History,
    check_anchors,
    read_history,
    verify_ledger,
)

__all__ = ["Anchor", "Ledger", "LedgerReport", "Spend", "verify_ledger"]


class Ledger:
    """An open ledger. One process at a time; the lock goes with the process.

    All ``timestamp`` arguments are informational; no decision rests on a clock.
    """

    recovered: str | None = None
    """What ``open`` had to cut off or complete, for the operator; None after a clean stop."""

    def __init__(
        self,
        path: Path,
        signing_key: SigningKey,
        lock: FileLock,
        raw: bytes,
        earlier_keys: Sequence[PublicKeyHex] = (),
        next_key: PublicKeyHex | None = None,
    ) -> None:
        """Through ``create`` and ``open`` only."""
        self._path, self._signing_key, self._lock = path, signing_key, lock
        self._history: History = read_history(
            raw, signing_key.public_key, file=str(path), earlier_keys=earlier_keys, next_key=next_key
        )
        self._size = len(raw)
        self._usable = True

    @classmethod
    def create(
        cls,
        path: Path,
        signing_key: SigningKey,
        *,
        silo: SiloId,
        federation: FederationId,
        timestamp: str = "",
    ) -> Self:
        """A new ledger with its ``enrol`` entry: complete and durable, or not there at all.

        Raises:
            ConfigError: it exists already, is in use, or cannot be written.
        """
        lock = append_only.locked(path)
        try:
            header = _header(signing_key, 0, entries.GENESIS, timestamp)
            line, _ = entries.seal(entries.Enrol(**header, silo=silo, federation=federation), signing_key)
            append_only.write_new(path, line)
            return cls(path, signing_key, lock, line)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        signing_key: SigningKey,
        *,
        anchors: Sequence[Anchor] = (),
        earlier_keys: Sequence[PublicKeyHex] = (),
        next_key: PublicKeyHex | None = None,
    ) -> Self:
        """The ledger as verified in every step of ``verification``, ready for appending.

        With ``next_key`` it is ready for ``rotate_key`` only, which a crash may have cut off before or after.

        Raises:
            ConfigError: it cannot be read, or another process has it.
            LedgerCorrupt: damage other than an unfinished last line.
            LedgerRolledBack: a head in ``anchors`` is missing.
        """
        lock = append_only.locked(path)
        try:
            found = append_only.read(path)
            raw, recovered = append_only.repaired(found, entries.is_unfinished)
            ledger = cls(path, signing_key, lock, raw, earlier_keys, next_key)
            check_anchors(ledger._history, anchors, file=str(path))
            append_only.replace_tail(path, raw)  # only now that all the rest has verified
            ledger.recovered = recovered
            return ledger
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Releases the lock. Nothing is pending: every entry was durable when its method returned."""
        self._usable = False
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def head(self) -> Digest:
        """Hash of the last entry: publish it, so that this history cannot be replaced."""
        return self._history.head

    def contains(self, head: Digest) -> bool:
        """Whether this history passed through ``head``."""
        return head in self._history.hashes

    @property
    def sequence(self) -> int:
        """Number of the last entry, counted from 0."""
        return len(self._history.hashes) - 1

    @property
    def spent(self) -> Cost:
        """Totals, at the smallest delta of any spend."""
        return self._history.spent

    @property
    def spends(self) -> tuple[Spend, ...]:
        return tuple(self._history.spends)

    def spend_of(self, plan_digest: Digest, round: int) -> Spend | None:
        """The charge of a round, or None. With an ``update_digest``, its update may have left the silo."""
        return self._history.spend_of(plan_digest, round)

    def check(self, terms: Terms) -> tuple[Cost, Cost]:
        """Both epsilons before and after one more round, at the smallest delta so far. Writes nothing.

        Raises:
            BudgetExhausted: after would pass one of the caps. A mechanism without noise passes any finite cap.
            UnaccountedMechanism: unknown, or its noise is too few integer steps for what accountants assume.
        """
        if is_too_coarse([*self._history.rounds(), (terms.mechanism, 1)]):
            raise UnaccountedMechanism(f"{terms.mechanism.kind} with noise of too few integer steps")
        delta = min(terms.delta, self._history.delta)
        before, after = self._history.forecast(terms.mechanism, delta, terms.rdp_order)
        for view in View:
            if not after.of(view) <= terms.caps.of(view):
                raise BudgetExhausted(before.of(view), after.of(view), terms.caps.of(view), view.value)
        return before, after

    def reserve(
        self,
        terms: Terms,
        *,
        round: int,
        attempt: int,
        cache_digest: Digest,
        data_commitment: Digest,
        randomness: Randomness = "os",
        timestamp: str = "",
    ) -> Spend:
        """Charges one round. The charge is on disk when this returns; train only then.

        A round is charged once: for a later attempt of the same plan and round the existing spend comes
        back, uncharged. That is right because a retry sends the *same* noised update again under fresh
        masks; ``note_sent`` refuses another update for the round. Retraining for release is a new round.

        Raises:
            BudgetExhausted, UnaccountedMechanism: as ``check``; nothing was written.
            PeerError: the round was charged for another cache, other records, another mechanism or randomness.
            ConfigError: not durable (disk full, say). Do not train; open the ledger again.
        """
        asked = (terms.mechanism, cache_digest, data_commitment, randomness)
        if (held := self.spend_of(terms.plan_digest, round)) is not None:
            if asked != (held.mechanism, held.cache_digest, held.data_commitment, held.randomness):
                raise PeerError(COORDINATOR, f"round {round} was charged for something else")
            return held
        before, after = self.check(terms)
        agreed = self._agreed(terms) | {"delta": exact(min(terms.delta, self._history.delta))}
        self._append(
            entries.SpendEntry,
            timestamp,
            **agreed,
            round=round,
            attempt=attempt,
            cache=cache_digest,
            data=data_commitment,
            local_before=exact(before.local),
            local_after=exact(after.local),
            aggregate_before=exact(before.aggregate),
            aggregate_after=exact(after.aggregate),
            accountant=accountant_name(),
            randomness=randomness,
        )
        return self._history.spends[-1]

    def note_plan(self, terms: Terms, *, timestamp: str = "") -> None:
        """The silo agreed to a plan. The first one fixes the order of this ledger's Renyi filter."""
        self._append(entries.Plan, timestamp, **self._agreed(terms))

    def _agreed(self, terms: Terms) -> dict[str, Any]:
        """The terms as entries hold them."""
        return {
            "plan": terms.plan_digest,
            "mechanism": mechanism_fields(terms.mechanism),
            "delta": exact(terms.delta),
            "survivors": terms.survivors,
            "colluders": terms.colluders,
            "rdp_order": self._history.rdp_order or terms.rdp_order,
            "local_cap": exact(terms.caps.local),
            "aggregate_cap": exact(terms.caps.aggregate),
        }

    def note_sent(
        self,
        plan_digest: Digest,
        round: int,
        attempt: int,
        update_digest: Digest,
        transcript_digest: Digest,
        *,
        timestamp: str = "",
    ) -> None:
        """Call before the masked update leaves: binds the round to this one update for ever.

        Raises:
            LocalProtocolError: the round was not reserved, or is bound to another update.
        """
        self._check_reserved(plan_digest, round)
        self._append(
            entries.Sent,
            timestamp,
            plan=plan_digest,
            round=round,
            attempt=attempt,
            update=update_digest,
            transcript=transcript_digest,
        )

    def note_receipt(
        self, plan_digest: Digest, round: int, record_digest: Digest, *, timestamp: str = ""
    ) -> None:
        """The round's signed record was verified."""
        self._check_reserved(plan_digest, round)
        self._append(entries.Receipt, timestamp, plan=plan_digest, round=round, record=record_digest)

    def note_abort(
        self, plan_digest: Digest, round: int, attempt: int, reason: str, *, timestamp: str = ""
    ) -> None:
        """An attempt ended without a record; its charge stays. ``reason``: up to 200 of printable ASCII."""
        self._check_reserved(plan_digest, round)
        self._append(entries.Abort, timestamp, plan=plan_digest, round=round, attempt=attempt, reason=reason)

    def rotate_key(self, new_key: SigningKey, roster_digest: Digest, *, timestamp: str = "") -> None:
        """Signs the new key with the old one; from now on this ledger is written under the new one.

        Nothing happens to the history: heads, charges and their order stay. Again with the same key: nothing.
        """
        self._history.expect_key(new_key.public_key)
        if self._history.public_key != new_key.public_key:
            self._append(entries.RotateKey, timestamp, new_key=new_key.public_key, roster=roster_digest)
        self._signing_key = new_key

    def _check_reserved(self, plan_digest: Digest, round: int) -> None:
        if self.spend_of(plan_digest, round) is None:
            raise LocalProtocolError(f"round {round} was not reserved")

    def _append(self, kind: type[Any], timestamp: str, **fields: Any) -> None:
        if not self._usable:
            raise LocalProtocolError("the ledger is closed, or a write to it failed: open it again")
        header = _header(self._signing_key, self.sequence + 1, self.head, timestamp)
        line, digest = entries.seal(kind(**header, **fields), self._signing_key)
        # Read back what will be written: an entry that would not verify later is refused now.
        body: AnyBody
        try:
            body = entries.open_line(line[:-1], self.sequence + 1, self.head, self._history.public_key).body
            self._history.check(body)
        except EntryRejected as error:
            raise LocalProtocolError(f"refused to write: {error}") from None
        self._usable = False  # after a failed write or fsync nobody knows what is on disk
        append_only.append(self._path, line, size=self._size)
        self._usable = True
        self._history.accept(body, digest)
        self._size += len(line)


def _header(signing_key: SigningKey, sequence: int, previous: Digest, timestamp: str) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "previous": previous,
        "public_key": signing_key.public_key,
        "code": cachefl_secure.__version__,
        "time": timestamp,
    }

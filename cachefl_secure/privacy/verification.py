"""What makes a ledger true: numbered steps, the same for its owner on opening and for an auditor.

 (1) the file exists, begins with an entry and ends with a newline
 (2) every line is a known entry in canonical form
 (3) sequence numbers count from 0; the first entry and no other is ``enrol``
 (4) every entry names the hash of the one before
 (5) every hash is that of its content
 (6) every signature verifies under the public key that is due: the first of those expected, and after each
     ``rotate_key``, which the old one signs and which names the new one, the next; the last of them at the end
 (7) a round of a plan is spent once; sent, receipt and abort refer to a spent round; a round has one update
 (8) every mechanism is accountable and counts on the noise of no more silos than survivors less colluders;
     the order of the Renyi filter is the same throughout
 (9) both epsilons, before and after each spend, are what the deciding accountant gives again (PLD, or RDP at that
     order once settings are mixed: ``accounting``), do not fall, and are within both caps
(10) the other of the two accountants does not contradict, in either view
(11) every head that others witnessed is in the chain

The file alone cannot show that its tail was cut off, or that its owner wrote another history: (11) does,
with heads from signed round records. No ledger can show that noise was really drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cachefl_secure.errors import ConfigError, LedgerCorrupt, LedgerRolledBack, UnaccountedMechanism
from cachefl_secure.names import Digest, PublicKeyHex
from cachefl_secure.privacy import entries
from cachefl_secure.privacy.accounting import NOTHING, Cost, charged, contradicts, second_opinion
from cachefl_secure.privacy.entries import AnyBody, EntryRejected, SpendEntry
from cachefl_secure.privacy.ledger_report import LedgerReport, Spend
from cachefl_secure.privacy.mechanism import Mechanism, View, mechanism_from_fields
from cachefl_secure.privacy.terms import NO_ORDER, has_order, relies_on

Anchor = tuple[int | None, Digest]
"""A head that somebody else witnessed. Its sequence may be unknown: the hash binds it anyway."""


def verify_ledger(
    path: Path,
    public_key: PublicKeyHex,
    *,
    anchors: Sequence[Anchor] = (),
    earlier_keys: Sequence[PublicKeyHex] = (),
    next_key: PublicKeyHex | None = None,
) -> LedgerReport:
    """All steps of the module's docstring. Reads only; needs no private key, no torch.

    ``earlier_keys`` are those that this silo had before, oldest first; ``next_key`` is one that it is about to
    have, under which the ledger may end already.

    Raises:
        ConfigError: the file cannot be read.
        LedgerCorrupt: an entry fails a step, named in ``reason``.
        LedgerRolledBack: step (11).
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None
    history = read_history(raw, public_key, file=str(path), earlier_keys=earlier_keys, next_key=next_key)
    check_anchors(history, anchors, file=str(path))
    return LedgerReport(
        silo=history.silo,
        entries=len(history.hashes),
        head=history.head,
        delta=history.delta,
        spent=history.spent,
        second=history.second_opinions[-1] if history.spends else NOTHING,
        spends=tuple(history.spends),
        second_opinions=tuple(history.second_opinions),
        rdp_order=history.rdp_order,
    )


def read_history(
    raw: bytes,
    public_key: PublicKeyHex,
    *,
    file: str,
    earlier_keys: Sequence[PublicKeyHex] = (),
    next_key: PublicKeyHex | None = None,
) -> History:
    """Steps (1) to (10) over the bytes of a whole ledger; keys as in ``verify_ledger``.

    Raises:
        LedgerCorrupt: with the entry, counted from 0, and the step.
    """
    *lines, rest = raw.split(b"\n")
    history = History(
        (*earlier_keys, public_key) if next_key is None else (*earlier_keys, public_key, next_key)
    )
    for sequence, line in enumerate(lines):
        try:
            opened = entries.open_line(line, sequence, history.head, history.public_key)  # (2) to (6)
            history.accept(opened.body, Digest(opened.hash))  # (7) to (10)
        except EntryRejected as error:
            raise LedgerCorrupt(file, sequence, str(error)) from None
    if not lines or rest:
        raise LedgerCorrupt(file, len(lines), "step 1: an unfinished line" if rest else "step 1: empty")
    if history.public_key not in (public_key, next_key):
        raise LedgerCorrupt(file, len(lines) - 1, "step 6: ends under an earlier key")
    return history


def check_anchors(history: History, anchors: Sequence[Anchor], *, file: str) -> None:
    """Step (11).

    Raises:
        LedgerRolledBack: the ledger ends before a witnessed head, or went another way.
    """
    for sequence, digest in anchors:
        held = history.hashes if sequence is None else history.hashes[sequence : sequence + 1]
        if digest not in held:
            raise LedgerRolledBack(file, history.head, digest)


class History:
    """The accepted entries so far: hashes of all, meaning of the spends. Grows by ``accept`` only."""

    def __init__(self, public_keys: Sequence[PublicKeyHex]) -> None:
        self._keys = list(public_keys)  # the present one first, then those that may follow
        self.hashes: list[Digest] = []
        self.spends: list[Spend] = []
        self.second_opinions: list[Cost] = []
        self.rdp_order = NO_ORDER
        self.silo = ""
        self._positions: dict[tuple[Digest, int], int] = {}
        self._rounds: Counter[Mechanism] = Counter()

    @property
    def public_key(self) -> PublicKeyHex:
        """What the next entry must be signed with."""
        return self._keys[0]

    def expect_key(self, public_key: PublicKeyHex) -> None:
        """From now on a ``rotate_key`` may name this one, after those that were expected already."""
        if public_key not in self._keys:
            self._keys.append(public_key)

    @property
    def head(self) -> Digest:
        return self.hashes[-1] if self.hashes else entries.GENESIS

    @property
    def delta(self) -> float:
        return self.spends[-1].delta if self.spends else 1.0

    @property
    def spent(self) -> Cost:
        """Total at ``delta``: nothing without spends."""
        return self.spends[-1].after if self.spends else NOTHING

    def rounds(self) -> list[tuple[Mechanism, int]]:
        """All spends as the accountants take them."""
        return list(self._rounds.items())

    def forecast(self, mechanism: Mechanism, delta: float, rdp_order: int) -> tuple[Cost, Cost]:
        """Totals before and after one more round, at this delta; they never fall.

        ``rdp_order`` counts only while the ledger has none.
        """
        order, earlier = self.rdp_order or rdp_order, self.rounds()
        before = charged(earlier, delta, order).at_least(self.spent)
        return before, charged([*earlier, (mechanism, 1)], delta, order).at_least(before)

    def spend_of(self, plan_digest: Digest, round_number: int) -> Spend | None:
        position = self._positions.get((plan_digest, round_number))
        return None if position is None else self.spends[position]

    def check(self, body: AnyBody) -> None:
        """Steps (7) to (10): what the entry means, after all entries so far.

        Raises:
            EntryRejected: names the step.
        """
        match body:
            case entries.Plan():
                self._check_terms(body)
            case SpendEntry():
                self._check_spend(body)
            case entries.Sent():
                # (7) two updates of one charge would be two releases for the price of one
                if self._spent(body.plan, body.round).update_digest not in (None, body.update):
                    raise EntryRejected(7, f"round {body.round} has another update")
            case entries.Receipt() | entries.Abort():
                self._spent(body.plan, body.round)
            case entries.RotateKey():
                if [body.new_key] != self._keys[1:2]:
                    raise EntryRejected(6, "passes on to a key that is not this silo's next one")

    def accept(self, body: AnyBody, digest: Digest) -> None:
        """Checks the entry and takes it in.

        Raises:
            EntryRejected: nothing was taken in.
        """
        self.check(body)
        match body:
            case entries.Enrol():
                self.silo = body.silo
            case entries.Plan():
                self.rdp_order = self.rdp_order or body.rdp_order
            case SpendEntry():
                spend = _spend(body)
                self.rdp_order = self.rdp_order or body.rdp_order
                self._positions[spend.plan_digest, spend.round] = len(self.spends)
                self.spends.append(spend)
                self._rounds[spend.mechanism] += 1
                self.second_opinions.append(second_opinion(self.rounds(), spend.delta))
            case entries.Sent():
                position = self._positions[Digest(body.plan), body.round]
                self.spends[position] = replace(self.spends[position], update_digest=Digest(body.update))
            case entries.RotateKey():
                del self._keys[0]
        self.hashes.append(digest)

    def _check_terms(self, body: entries.Plan | SpendEntry) -> Mechanism:
        # (8) the mechanism, the shares of noise that it counts on, the order of the filter
        try:
            mechanism = mechanism_from_fields(body.mechanism)
        except (UnaccountedMechanism, ValueError) as error:
            raise EntryRejected(8, str(error)) from None
        if not relies_on(mechanism, survivors=body.survivors, colluders=body.colluders):
            raise EntryRejected(8, "counts on other shares of noise than survivors less colluders")
        if not has_order(mechanism, body.rdp_order) or (self.rdp_order or body.rdp_order) != body.rdp_order:
            raise EntryRejected(8, "the order of the Renyi filter is missing or was changed")
        _numbers(body.delta, body.local_cap, body.aggregate_cap)
        return mechanism

    def _check_spend(self, body: SpendEntry) -> None:
        # (7) once a round
        if (Digest(body.plan), body.round) in self._positions:
            raise EntryRejected(7, f"round {body.round} is spent twice")
        mechanism = self._check_terms(body)
        # (9) the numbers
        (delta,) = _numbers(body.delta)
        if not 0.0 < delta < 1.0 or delta > self.delta:
            raise EntryRejected(9, "delta grew or is out of range")
        spend = _spend(body)
        before, after = self.forecast(mechanism, delta, body.rdp_order)
        if not (_same(spend.before, before) and _same(spend.after, after)):
            raise EntryRejected(9, "epsilon is not what the accountant gives")
        if not spend.after.within(spend.caps) or not self.spent.within(spend.after):
            raise EntryRejected(9, "epsilon passes a cap or falls")
        # (10) a second opinion
        rounds = [*self.rounds(), (mechanism, 1)]
        if contradicts(second_opinion(rounds, delta), after, rounds):
            raise EntryRejected(10, "the second accountant contradicts the first")

    def _spent(self, plan: str, round_number: int) -> Spend:
        spend = self.spend_of(Digest(plan), round_number)
        if spend is None:
            raise EntryRejected(7, f"round {round_number} was not spent")
        return spend


def _spend(body: SpendEntry) -> Spend:
    """
    Raises:
        EntryRejected: (9) a number is not exact.
    """
    delta, *epsilons = _numbers(
        body.delta,
        *(body.local_before, body.aggregate_before, body.local_after, body.aggregate_after),
        *(body.local_cap, body.aggregate_cap),
    )
    return Spend(
        sequence=body.sequence,
        plan_digest=Digest(body.plan),
        round=body.round,
        attempt=body.attempt,
        cache_digest=Digest(body.cache),
        data_commitment=Digest(body.data),
        mechanism=mechanism_from_fields(body.mechanism),
        delta=delta,
        survivors=body.survivors,
        colluders=body.colluders,
        before=Cost(*epsilons[:2]),
        after=Cost(*epsilons[2:4]),
        caps=Cost(*epsilons[4:]),
        randomness=body.randomness,
    )


def _numbers(*texts: str) -> list[float]:
    try:
        return [entries.number(text) for text in texts]
    except ValueError as error:
        raise EntryRejected(9, str(error)) from None


def _same(recorded: Cost, recomputed: Cost) -> bool:
    # Another FFT library may differ in the last bits; the grid is a thousand times coarser.
    return all(
        math.isclose(recorded.of(view), recomputed.of(view), rel_tol=1e-6, abs_tol=1e-9) for view in View
    )

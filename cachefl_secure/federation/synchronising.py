"""The coordinator's first words of a round: who is there, who lacks what, who has countersigned the roster.

A change of the roster is followed here and nowhere else: between two rounds, once a quorum has approved it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cachefl_secure.crypto.sign import verify
from cachefl_secure.errors import BadSignature, MalformedMessage, PeerError
from cachefl_secure.federation import letters
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.countersigning import (
    check_countersignature,
    keep_countersignatures,
    kept_countersignatures,
)
from cachefl_secure.federation.letters import Countersignature, Hello, Receipt, Standing, Sync, SyncedRound
from cachefl_secure.federation.roster_change import Approval, RosterChange, check_approval, with_approvals
from cachefl_secure.federation.roster_files import CHANGE_FILE, keep_pending, pending_change
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir
from cachefl_secure.names import SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.messages import roster_digest


@dataclass(slots=True)
class Attendance:
    """Who does not take part in a round, and why, as far as the coordinator can know."""

    absent: set[SiloId] = field(default_factory=set)
    declined: dict[SiloId, str] = field(default_factory=dict)
    rejected: dict[SiloId, str] = field(default_factory=dict)
    exhausted: set[SiloId] = field(default_factory=set)
    """Silos whose caps allow no further round. They get all records and are in no cohort."""
    heard: set[SiloId] = field(default_factory=set)
    """Silos that answered anything at all."""
    shown: dict[SiloId, str] = field(default_factory=dict)
    """Silos to which a change of the roster was brought for approval, and the digest of its roster."""

    def include(self, other: Attendance) -> None:
        self.absent |= other.absent
        self.exhausted |= other.exhausted
        self.heard |= other.heard
        self.shown.update(other.shown)
        self.declined.update(other.declined)
        self.rejected.update(other.rejected)


Ask = Callable[[str, Mapping[SiloId, bytes], Attendance], dict[SiloId, bytes]]
"""(phase, requests, where absence is noted) -> the answers."""


class Synchroniser:
    """One pass over all silos: hello, then what each lacks."""

    def __init__(self, state: StateDir, chain: Chain, ask: Ask) -> None:
        self._state, self._chain, self._ask = state, chain, ask
        self._take_roster()

    def synchronise(self, attendance: Attendance, *, may_change_roster: bool = True) -> set[SiloId]:
        """Returns the silos that hold everything, those without budget for another round among them.

        The first time under a roster it takes two passes: one collects the countersignatures, the other hands
        them out. While a round is left between certificate and record, its roster stays.
        """
        standings = self._standings(attendance)
        proposal = self._collect_approvals(standings, attendance)
        if proposal is not None and may_change_roster and self._follow(proposal):
            proposal, standings = None, self._standings(attendance)  # others are members now
        ready = self._deliver(
            {silo: self._lacking(each, proposal) for silo, each in standings.items()}, attendance
        )
        if proposal is not None:
            self._note_shown(proposal, ready, standings, attendance)
        if len(self._countersigned) == len(self._keys):
            waiting = [silo for silo in ready if not self._has_all_countersignatures(standings[silo])]
            if not waiting:
                return ready
            complete = Sync(b"", b"", (), tuple(self._countersigned[silo] for silo in sorted(self._keys)))
            signed = self._deliver(dict.fromkeys(waiting, complete), attendance)
            ready -= set(waiting) - signed
        return ready

    def _take_roster(self) -> None:
        self._keys = self._chain.roster.public_keys
        self._countersigned = kept_countersignatures(self._state, self._chain.roster)

    def _has_all_countersignatures(self, standing: Standing) -> bool:
        return standing.is_countersigned and standing.epoch == self._chain.roster.epoch

    def _standings(self, attendance: Attendance) -> dict[SiloId, Standing]:
        receipts, plan = self._receipts(), plan_digest(self._chain.plan)
        hellos = {
            silo: wire.encode(Hello(plan, receipts[silo][-1] if silo in receipts else None))
            for silo in self._keys
        }
        standings: dict[SiloId, Standing] = {}
        for silo, body in self._ask(letters.HELLO, hellos, attendance).items():
            try:
                standings[silo] = wire.decode(body, Standing, limit_bytes=1 << 12, peer=silo)
            except MalformedMessage as error:
                attendance.rejected[silo] = str(error)
                continue
            standing = standings[silo]
            if not standing.has_budget and standing.charged_round <= self._chain.position.round:
                attendance.exhausted.add(silo)
        return standings

    def _collect_approvals(
        self, standings: Mapping[SiloId, Standing], attendance: Attendance
    ) -> RosterChange | None:
        """The change that waits, with the approvals that came just now; they are on disk."""
        rosters = self._chain.rosters
        change = pending_change(self._state, rosters)
        if change is None:
            return None
        new, arrived = rosters.check_proposal(change), list[Approval]()
        for silo, standing in standings.items():
            if standing.approval is None or standing.approval in change.approvals:
                continue
            try:
                if standing.approval.silo != silo:
                    raise BadSignature(silo, "approval of another silo")
                check_approval(standing.approval, self._chain.roster, new)
                arrived.append(standing.approval)
            except PeerError as error:
                attendance.rejected[silo] = str(error)
        if arrived:
            change = with_approvals(change, arrived)
            keep_pending(self._state, change)
        return change

    def _follow(self, change: RosterChange) -> bool:
        """Whether a quorum stands behind the change, and so it has been followed."""
        if len(change.approvals) < self._chain.rosters.quorum:
            return False
        before = set(self._keys)
        self._chain.follow(change)
        # After a crash it may be there again: then it is of an epoch that is over.
        self._state.remove(CHANGE_FILE)
        self._take_roster()
        if removed := before - set(self._keys):
            farewell = wire.encode(Sync(b"", b"", (), changes=self._chain.rosters.changes))
            # Whoever is away is not waited for, and hears of it from its operator.
            self._ask(letters.SYNC, dict.fromkeys(removed, farewell), Attendance())
        return True

    def _note_shown(
        self,
        proposal: RosterChange,
        ready: set[SiloId],
        standings: Mapping[SiloId, Standing],
        attendance: Attendance,
    ) -> None:
        offered = roster_digest(self._chain.rosters.check_proposal(proposal))
        asked = (silo for silo in ready if self._is_asked(standings[silo]))
        attendance.shown.update(dict.fromkeys(asked, offered))

    def _is_asked(self, standing: Standing) -> bool:
        """Whether a proposal is sent along."""
        return standing.epoch == self._chain.roster.epoch and standing.approval is None

    def _lacking(self, standing: Standing, proposal: RosterChange | None) -> Sync:
        return Sync(
            roster=b"" if standing.has_roster else self._state.read(ROSTER_FILE),
            initial_cache=b"" if standing.has_cache else self._chain.initial_cache_bytes(),
            rounds=tuple(SyncedRound(*pair) for pair in self._chain.rounds_after(standing.round)),
            changes=self._chain.rosters.changes[max(standing.epoch, 1) - 1 :],
            proposal=proposal if self._is_asked(standing) else None,
        )

    def _deliver(self, syncs: Mapping[SiloId, Sync], attendance: Attendance) -> set[SiloId]:
        receipts: dict[SiloId, Receipt] = {}
        requests = {silo: wire.encode(sync) for silo, sync in syncs.items()}
        for silo, body in self._ask(letters.SYNC, requests, attendance).items():
            try:
                receipts[silo] = self._open_receipt(silo, body)
            except PeerError as error:
                attendance.rejected[silo] = str(error)
        self._keep(receipts)
        return set(receipts)

    def _open_receipt(self, silo: SiloId, body: bytes) -> Receipt:
        receipt = wire.decode(body, Receipt, limit_bytes=1 << 12, peer=silo)
        signed = letters.receipt_bytes(receipt)
        verify(self._keys[silo], letters.RECEIPT_PURPOSE, signed, receipt.signature, peer=silo)
        if (receipt.silo, receipt.record_digest) != (silo, self._chain.position.record_digest):
            raise BadSignature(silo, "receipt for another silo or another record")
        if receipt.roster_digest != roster_digest(self._chain.roster):
            raise PeerError(silo, "has pinned another roster")
        if receipt.countersignature is not None:
            if receipt.countersignature.silo != silo:
                raise BadSignature(silo, "countersignature of another silo")
            check_countersignature(receipt.countersignature, self._chain.roster)
        return receipt

    def _keep(self, receipts: Mapping[SiloId, Receipt]) -> None:
        """Silos' signed words that they hold the record, and their ledger heads: anchors for an auditor."""
        kept, new = self._receipts(), dict[SiloId, Countersignature]()
        for silo, receipt in receipts.items():
            known = kept.setdefault(silo, [])
            if not known or known[-1].ledger_head != receipt.ledger_head:
                known.append(receipt)
            if receipt.countersignature is not None and silo not in self._countersigned:
                new[silo] = receipt.countersignature
        if receipts:
            self._state.write(letters.RECEIPTS_FILE, letters.write_receipts(kept))
        if new:
            self._countersigned |= new
            keep_countersignatures(self._state, self._countersigned, self._chain.roster.epoch)

    def _receipts(self) -> dict[SiloId, list[Receipt]]:
        name = letters.RECEIPTS_FILE
        return letters.read_receipts(self._state.read(name), file=name) if self._state.has(name) else {}

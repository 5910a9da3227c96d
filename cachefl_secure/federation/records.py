"""A party's verified round records on disk, each under the roster of its time. Runs without torch.

rounds/0007/record.json   the coordinator's signed record; its presence is what commits the round
"""

from __future__ import annotations

from dataclasses import dataclass

from cachefl_secure.errors import RecordRejected
from cachefl_secure.federation.record import Position, RoundRecord, check_record, genesis, open_record
from cachefl_secure.federation.roster_change import RosterChange, RosterHistory
from cachefl_secure.federation.roster_files import keep_change
from cachefl_secure.federation.state_dir import StateDir, round_file, round_numbers
from cachefl_secure.names import Digest, SiloId
from cachefl_secure.plan import FederationPlan
from cachefl_secure.privacy.accounting import Cost, cost_of
from cachefl_secure.privacy.mechanism import mechanism_of
from cachefl_secure.protocol.messages import Roster


@dataclass(frozen=True, slots=True)
class VerifiedRound:
    """One round whose every step held."""

    record: RoundRecord
    digest: Digest


class Records:
    """The records a party holds, each verified in steps (1) to (4) on opening.

    Raises (on construction):
        RecordRejected: a stored record fails a step: damage or tampering.
        ConfigError: a file is missing or unreadable.
    """

    def __init__(self, state: StateDir, plan: FederationPlan, rosters: RosterHistory) -> None:
        self._state, self._plan, self._rosters = state, plan, rosters
        self.position: Position = genesis(plan)
        self.verified: list[VerifiedRound] = []
        for number in self._committed():
            file = round_file(number, "record.json")
            try:
                record, digest = open_record(state.read(file), plan)
                check_record(record, plan, self.roster_of(record), self.position, None)
            except RecordRejected as error:
                raise RecordRejected(error.step, f"{state.path(file)}: {error.reason}") from None
            self._accept(record, digest)

    @property
    def plan(self) -> FederationPlan:
        return self._plan

    @property
    def roster(self) -> Roster:
        """The last one that this party followed: of the next round."""
        return self._rosters.current

    @property
    def rosters(self) -> RosterHistory:
        return self._rosters

    def roster_of(self, record: RoundRecord) -> Roster:
        """The roster that the record names. From record to record its epoch never falls.

        Raises:
            RecordRejected: step (2): unknown, or of an epoch that was over.
        """
        roster = self._rosters.named(record.roster_digest)
        if roster is None:
            raise RecordRejected(2, "another roster")
        if self.verified:
            last = self._rosters.named(self.verified[-1].record.roster_digest)
            if last is not None and roster.epoch < last.epoch:
                raise RecordRejected(2, f"the roster of epoch {roster.epoch} after that of {last.epoch}")
        return roster

    def follow(self, change: RosterChange) -> None:
        """Goes to the next roster, for good. On disk when this returns.

        Raises:
            PeerError: the change does not follow the current roster, or a quorum does not stand behind it.
        """
        history = self._rosters.follow(change)
        keep_change(self._state, history)
        self._rosters = history

    def ledger_heads_of(self, silo: SiloId) -> tuple[Digest, ...]:
        """Every head of the silo's ledger that a record names: its ledger must contain them all."""
        records = (held.record for held in self.verified)
        return tuple(Digest(record.ledger_heads[silo]) for record in records if silo in record.ledger_heads)

    def cost_by(self, round_number: int) -> Cost:
        """Most that any silo's ledger can have charged for this plan by this round.

        Every round number is charged at most once, the ones that were given up included, so the number
        and not the count of records bounds it. What a silo really spent is in its own ledger.
        """
        return cost_of([(mechanism_of(self._plan), round_number)], self._plan.privacy.delta)

    def _committed(self) -> list[int]:
        return [n for n in round_numbers(self._state) if self._state.has(round_file(n, "record.json"))]

    def _accept(self, record: RoundRecord, digest: Digest) -> None:
        self.verified.append(VerifiedRound(record, digest))
        self.position = Position(record.round, digest, Digest(record.cache_after))

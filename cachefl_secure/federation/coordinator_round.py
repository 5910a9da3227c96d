"""The coordinator's side: bring silos up to date, run the six exchanges of CF-SecAgg/1, publish the record.

The coordinator is trusted with availability only. What it must get right for itself:

 1. An attempt's number is on disk before its manifest leaves, so that no number is used twice.
 2. That it asked for unmasking is on disk before it asks. If the round then fails, its number is given
    up: silos refuse to put an update that was once opened into another sum.
 3. ``record.json`` is written last; with it the round has happened, without it it has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cachefl_secure.cache.model import cache_digest
from cachefl_secure.crypto.sign import SigningKey, verify
from cachefl_secure.errors import BadSignature, MalformedMessage, PeerError, RoundAborted
from cachefl_secure.federation import letters
from cachefl_secure.federation.chain import Chain, apply_aggregate
from cachefl_secure.federation.letters import Hello, Receipt, Reply, Standing, Sync, SyncedRound
from cachefl_secure.federation.ports import CoordinatorChannel, Progress, silent
from cachefl_secure.federation.record import RoundRecord, recorded, sign_record, smallest_cohort
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir, round_file, round_numbers
from cachefl_secure.names import PublicKeyHex, SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.encoding import decode_sum
from cachefl_secure.protocol.messages import Manifest, manifest_digest, roster_digest
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum, aggregate_digest

DEFAULT_DEADLINE_SECONDS = 600.0
PHASES = ("manifest", "share", "masked-input", "certificate", "unmask", "record")


@dataclass(slots=True)
class Attendance:
    """Who does not take part in a round, and why, as far as the coordinator can know."""

    absent: set[SiloId] = field(default_factory=set)
    declined: dict[SiloId, str] = field(default_factory=dict)
    rejected: dict[SiloId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """A committed round."""

    record: RoundRecord
    attendance: Attendance
    enrolled: int
    """Silos of the roster, whether they took part or not."""
    epsilon: float
    """Most that any silo can have spent by now; see ``Records.epsilon_by``."""


class CoordinatorService:
    """Runs rounds over a channel. One instance at a time holds the directory's lock."""

    def __init__(
        self,
        state: StateDir,
        chain: Chain,
        channel: CoordinatorChannel,
        *,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
    ) -> None:
        self._state, self._chain, self._channel = state, chain, channel
        self._deadline_seconds = deadline_seconds
        self._identity: SigningKey = state.signing_key()
        self._keys = {SiloId(m.silo): PublicKeyHex(m.public_key) for m in chain.roster.members}

    # --- bringing silos up to date

    def synchronise(self, attendance: Attendance) -> set[SiloId]:
        """Sends every silo the roster, the cache and the records it lacks; returns those that hold all."""
        receipts, plan = self._receipts(), plan_digest(self._chain.plan)
        hellos = {
            silo: wire.encode(Hello(plan, receipts[silo][-1].ledger_head if silo in receipts else None))
            for silo in self._keys
        }
        standings: dict[SiloId, Standing] = {}
        for silo, body in self._ask(letters.HELLO, hellos, attendance).items():
            try:
                standings[silo] = wire.decode(body, Standing, limit_bytes=1 << 12, peer=silo)
            except MalformedMessage as error:
                attendance.rejected[silo] = str(error)
        requests = {silo: wire.encode(self._lacking(standing)) for silo, standing in standings.items()}
        return self._deliver(requests, attendance)

    def _lacking(self, standing: Standing) -> Sync:
        return Sync(
            roster=b"" if standing.has_roster else self._state.read(ROSTER_FILE),
            initial_cache=b"" if standing.has_cache else self._chain.initial_cache_bytes(),
            rounds=tuple(SyncedRound(*pair) for pair in self._chain.rounds_after(standing.round)),
        )

    def _deliver(self, requests: Mapping[SiloId, bytes], attendance: Attendance) -> set[SiloId]:
        receipts: dict[SiloId, Receipt] = {}
        for silo, body in self._ask(letters.SYNC, requests, attendance).items():
            try:
                receipts[silo] = self._open_receipt(silo, body)
            except PeerError as error:
                attendance.rejected[silo] = str(error)
        self._keep_receipts(receipts)
        return set(receipts)

    def _open_receipt(self, silo: SiloId, body: bytes) -> Receipt:
        receipt = wire.decode(body, Receipt, limit_bytes=1 << 12, peer=silo)
        signed = letters.receipt_bytes(receipt)
        verify(self._keys[silo], letters.RECEIPT_PURPOSE, signed, receipt.signature, peer=silo)
        position = self._chain.position
        if (receipt.silo, receipt.record_digest) != (silo, position.record_digest):
            raise BadSignature(silo, "receipt for another silo or another record")
        if receipt.roster_digest != roster_digest(self._chain.roster):
            raise PeerError(silo, "countersigned another roster")
        return receipt

    def _keep_receipts(self, receipts: Mapping[SiloId, Receipt]) -> None:
        """Silos' signed words that they hold the record, and their ledger heads: anchors for an auditor."""
        kept = self._receipts()
        for silo, receipt in receipts.items():
            known = kept.setdefault(silo, [])
            if not known or known[-1].ledger_head != receipt.ledger_head:
                known.append(receipt)
        if receipts:
            self._state.write(letters.RECEIPTS_FILE, letters.write_receipts(kept))

    def _receipts(self) -> dict[SiloId, list[Receipt]]:
        name = letters.RECEIPTS_FILE
        return letters.read_receipts(self._state.read(name), file=name) if self._state.has(name) else {}

    # --- one round

    def run_round(
        self, cohort: set[SiloId], attendance: Attendance, progress: Progress = silent
    ) -> RoundOutcome:
        """One round with these silos.

        Raises:
            RoundAborted: fewer silos than the threshold. Run it again: the same noised updates are re-sent
                and nothing more is charged, unless unmasking had begun.
        """
        needed = smallest_cohort(self._chain.plan, self._chain.roster)
        if len(cohort) < needed:
            raise RoundAborted(len(cohort), needed)
        parameters = RoundParameters.derive(self._chain.plan, len(cohort), len(self._keys))
        manifest = self._open_attempt(cohort)
        session = CoordinatorSession(
            manifest=manifest, identity=self._identity, roster=self._chain.roster, parameters=parameters
        )
        try:
            aggregate = self._converse(session, manifest, attendance, progress)
        finally:
            attendance.rejected.update({silo: str(error) for silo, error in session.rejected.items()})
        record, raw, content = self._publish(session, manifest, aggregate, parameters)
        self._chain.extend(raw, content, None)
        progress(len(PHASES), len(PHASES), f"round {manifest.round}")
        epsilon = self._chain.epsilon_by(record.round)
        return RoundOutcome(record, attendance, len(self._keys), epsilon)

    def _open_attempt(self, cohort: set[SiloId]) -> Manifest:
        number = self.next_round()
        attempt_file = round_file(number, "attempt")
        attempt = 1 + (int(self._state.read(attempt_file)) if self._state.has(attempt_file) else 0)
        self._state.write(attempt_file, str(attempt).encode())  # rule 1
        position = self._chain.position
        return Manifest(
            plan_digest=plan_digest(self._chain.plan),
            roster_digest=roster_digest(self._chain.roster),
            round=number,
            attempt=attempt,
            cohort=tuple(sorted(cohort)),
            cache_digest=position.cache_digest,
            previous_record=position.record_digest,
        )

    def next_round(self) -> int:
        """One more than the last round that happened or was given up (rule 2)."""
        asked = round_numbers(self._state)
        given_up = (n for n in asked if self._state.has(round_file(n, "unmask-requested")))
        return max(self._chain.position.round, *given_up, 0) + 1

    def _converse(
        self, session: CoordinatorSession, manifest: Manifest, attendance: Attendance, progress: Progress
    ) -> AggregateSum:
        what = f"round {manifest.round}"
        cohort = [SiloId(silo) for silo in manifest.cohort]
        progress(0, len(PHASES), what)
        opening = dict.fromkeys(cohort, session.manifest_message())
        key_lists = session.on_advertisements(self._ask(letters.MANIFEST, opening, attendance))
        progress(1, len(PHASES), what)
        deliveries = session.on_sealed_shares(self._ask(letters.SHARE, key_lists, attendance))
        progress(2, len(PHASES), what)
        survivor_sets = session.on_masked_inputs(self._ask(letters.MASKED_INPUT, deliveries, attendance))
        progress(3, len(PHASES), what)
        certificates = session.on_statements(self._ask(letters.CERTIFICATE, survivor_sets, attendance))
        progress(4, len(PHASES), what)
        self._state.write(round_file(manifest.round, "unmask-requested"), b"")  # rule 2
        aggregate = session.on_unmask_shares(self._ask(letters.UNMASK, certificates, attendance))
        progress(5, len(PHASES), what)
        return aggregate

    def _publish(
        self,
        session: CoordinatorSession,
        manifest: Manifest,
        aggregate: AggregateSum,
        parameters: RoundParameters,
    ) -> tuple[RoundRecord, bytes, bytes]:
        decoded, survivors = decode_sum(aggregate, parameters), sorted(session.survivors)
        after = apply_aggregate(self._chain.model(), decoded, len(survivors))
        content = aggregate.to_bytes()
        record = RoundRecord(
            federation_id=self._chain.plan.federation_id,
            plan_digest=manifest.plan_digest,
            roster_digest=manifest.roster_digest,
            round=manifest.round,
            attempt=manifest.attempt,
            manifest_digest=manifest_digest(manifest),
            cohort=manifest.cohort,
            survivors=tuple(survivors),
            previous_record=manifest.previous_record,
            transcript_digest=session.transcript_digest,
            certificate=recorded(session.certified),
            aggregate_digest=aggregate_digest(content),
            saturated=decoded.saturated,
            cache_before=manifest.cache_digest,
            cache_after=cache_digest(after),
            ledger_heads={
                str(silo): head for silo, head in session.ledger_heads.items() if silo in survivors
            },
        )
        return record, sign_record(record, self._identity), content

    # --- asking

    def _ask(
        self, phase: str, requests: Mapping[SiloId, bytes], attendance: Attendance
    ) -> dict[SiloId, bytes]:
        """The bodies of the silos that answered; the others are noted in ``attendance``."""
        bodies: dict[SiloId, bytes] = {}
        replies = self._channel.exchange(phase, requests, self._deadline_seconds)
        attendance.absent |= set(requests) - set(replies)
        for silo, raw in replies.items():
            try:
                reply = wire.decode(raw, Reply, limit_bytes=letters.MAX_LETTER_BYTES, peer=silo)
            except MalformedMessage as error:
                attendance.rejected[silo] = str(error)
                continue
            if reply.declined is not None:
                attendance.declined[silo] = reply.declined
            else:
                bodies[silo] = reply.answer
        return bodies

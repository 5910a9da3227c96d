"""The coordinator's side: bring silos up to date, run the six exchanges of CF-SecAgg/1, publish the record.

The coordinator is trusted with availability only. What it must get right for itself:

 1. An attempt's number is on disk before its manifest leaves, so that no number is used twice.
 2. Once there is a certificate, all that is needed to finish is on disk before it leaves: silos refuse to put
    an update that was once opened into another sum, so a killed coordinator sends the same certificate
    again and gets the same answers. If too few silos can answer any more, the number is given up.
 3. ``record.json`` is written last; with it the round has happened, without it it has not.

    rounds/0007/attempt     number of the last attempt and digest of its roster, as text
    rounds/0007/unmasking   the round between certificate and record; removed with either end
    rounds/0007/given-up    certified, and never to be finished
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cachefl_secure.cache.model import cache_digest
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import ConfigError, MalformedMessage, PeerError, RoundAborted
from cachefl_secure.federation import letters
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.letters import Reply
from cachefl_secure.federation.ports import CoordinatorChannel, Progress, silent
from cachefl_secure.federation.record import RoundRecord, recorded, sign_record, smallest_cohort
from cachefl_secure.federation.roster_files import settle_rosters
from cachefl_secure.federation.state_dir import StateDir, round_file, round_numbers
from cachefl_secure.federation.synchronising import Attendance, Synchroniser
from cachefl_secure.names import PublicKeyHex, SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.privacy.accounting import Cost
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.encoding import decode_sum
from cachefl_secure.protocol.messages import Manifest, manifest_digest, roster_digest
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.unmasking import UnmaskingRound, unmasking_from_bytes, unmasking_to_bytes
from cachefl_secure.protocol.vectors import AggregateSum, aggregate_digest

DEFAULT_DEADLINE_SECONDS = 600.0
_ATTEMPT, _UNMASKING, _GIVEN_UP = "attempt", "unmasking", "given-up"
PHASES = ("manifest", "share", "masked-input", "certificate", "unmask", "record")


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """A committed round."""

    record: RoundRecord
    attendance: Attendance
    enrolled: int
    """Silos of the roster, whether they took part or not."""
    cost: Cost
    """Most that any silo can have spent by now; see ``Records.cost_by``."""


class CoordinatorService:
    """Runs rounds over a channel. One instance at a time holds the directory's lock."""

    def __init__(
        self,
        state: StateDir,
        chain: Chain,
        channel: CoordinatorChannel,
        *,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
        gather_seconds: float | None = None,
    ) -> None:
        """``gather_seconds``: how long silos are waited for before a round; None: as long as for an answer in it."""
        self._state, self._chain, self._channel = state, chain, channel
        self._deadline_seconds = deadline_seconds
        self._gather_seconds = deadline_seconds if gather_seconds is None else gather_seconds
        self._identity: SigningKey = state.signing_key()
        settle_rosters(state, chain.rosters)  # records under a roster rest on it

    @property
    def _keys(self) -> dict[SiloId, PublicKeyHex]:
        return self._chain.roster.public_keys  # of the present roster, which ``synchronise`` may change

    def synchronise(self, attendance: Attendance) -> set[SiloId]:
        """Sends every silo the rosters, the cache and the records it lacks; returns those that hold all."""
        synchroniser = Synchroniser(self._state, self._chain, self._ask)
        return synchroniser.synchronise(attendance, may_change_roster=self._unfinished() is None)

    # --- one round

    def run_round(
        self, cohort: set[SiloId], attendance: Attendance, progress: Progress = silent
    ) -> RoundOutcome:
        """One round with these silos, less those whose caps allow none: the federation goes on without them.

        Raises:
            ConfigError: a plan of one release, which happened.
            RoundAborted: fewer silos than the threshold. Run it again: the same noised updates are re-sent
                and nothing more is charged, unless unmasking had begun.
        """
        if self._chain.plan.is_one_release and self._chain.position.round > 0:
            kind = self._chain.plan.privacy.mechanism
            reason = f"{kind} is one release: it happens once, and it has; for another one found another federation"
            raise ConfigError("round", "", reason)
        left_out = cohort & attendance.exhausted
        attendance.declined.update(dict.fromkeys(left_out, "budget-exhausted"))
        cohort = cohort - left_out
        needed = smallest_cohort(self._chain.plan, self._chain.roster)
        if len(cohort) < needed:
            raise RoundAborted(len(cohort), needed)
        parameters = RoundParameters.derive(self._chain.plan, len(cohort), len(self._keys))
        manifest = self._open_attempt(cohort)
        session = CoordinatorSession(
            manifest=manifest, identity=self._identity, roster=self._chain.roster, parameters=parameters
        )
        try:
            self._certify(session, manifest, attendance, progress)
        finally:
            attendance.rejected.update({silo: str(error) for silo, error in session.rejected.items()})
        return self._unmask(session, manifest, parameters, attendance, progress)

    def finish_round(self, attendance: Attendance, progress: Progress = silent) -> RoundOutcome | None:
        """The round that a killed coordinator left between certificate and record, if there is one.

        Raises:
            RoundAborted: too few silos answered. If those that were absent may still come, run it again;
                else its number is given up, and the next round can begin.
            ConfigError: its file is damaged.
        """
        saved = self._unfinished()
        if saved is None:
            return None
        name = round_file(saved.manifest.round, _UNMASKING)
        try:
            parameters = RoundParameters.derive(self._chain.plan, len(saved.manifest.cohort), len(self._keys))
            session = CoordinatorSession.resume(saved, self._identity, self._chain.roster, parameters)
        except (PeerError, ValueError) as error:
            raise ConfigError(str(self._state.path(name)), "", f"does not fit: {error}") from None
        return self._unmask(session, saved.manifest, parameters, attendance, progress)

    def give_up_round(self) -> int | None:
        """Gives up the round that was left between certificate and record, and returns its number.

        Its charges stay. For an operator who knows that the silos it waits for will not come back.
        """
        asked = [n for n in round_numbers(self._state) if self._state.has(round_file(n, _UNMASKING))]
        for number in asked:
            self._give_up(number)
        return max(asked, default=None)

    @property
    def was_interrupted(self) -> bool:
        """Whether a round was begun that neither happened nor was given up."""
        return self._unfinished() is not None or self._begun(self.next_round())[0] > 0

    def _unfinished(self) -> UnmaskingRound | None:
        for number in reversed(round_numbers(self._state)):
            name = round_file(number, _UNMASKING)
            if not self._state.has(name):
                continue
            if number <= self._chain.position.round:  # the record was written, then this process was killed
                self._state.remove(name)
                continue
            try:
                saved = unmasking_from_bytes(self._state.read(name))
            except ValueError as error:
                reason = f"{error}; `round --give-up` leaves this round out"
                raise ConfigError(str(self._state.path(name)), "", reason) from None
            if not self._is_of_an_earlier_roster(saved):
                return saved
            self._state.remove(name)
        return None

    def _is_of_an_earlier_roster(self, saved: UnmaskingRound) -> bool:
        """Then it was given up, or no other would have been followed; a loss of power may bring back what was removed."""
        of = saved.manifest.roster_digest
        return of != roster_digest(self._chain.roster) and self._chain.rosters.named(of) is not None

    def _unmask(
        self,
        session: CoordinatorSession,
        manifest: Manifest,
        parameters: RoundParameters,
        attendance: Attendance,
        progress: Progress,
    ) -> RoundOutcome:
        """From the certificate to the record."""
        here = Attendance()
        try:
            aggregate = session.on_unmask_shares(self._ask(letters.UNMASK, session.certificates(), here))
        except RoundAborted as aborted:
            if aborted.present + len(here.absent) < aborted.threshold:
                self._give_up(manifest.round)  # those that answered have nothing more to say
            raise
        except PeerError:
            self._give_up(manifest.round)
            raise
        finally:
            here.rejected.update({silo: str(error) for silo, error in session.rejected.items()})
            attendance.include(here)
        progress(5, len(PHASES), f"round {manifest.round}")
        record, raw, content = self._publish(session, manifest, aggregate, parameters)
        self._chain.extend(raw, content, None)
        self._state.remove(round_file(manifest.round, _UNMASKING))
        progress(len(PHASES), len(PHASES), f"round {manifest.round}")
        return RoundOutcome(record, attendance, len(self._keys), self._chain.cost_by(record.round))

    def _give_up(self, number: int) -> None:
        self._state.write(round_file(number, _GIVEN_UP), b"")
        self._state.remove(round_file(number, _UNMASKING))

    def _open_attempt(self, cohort: set[SiloId]) -> Manifest:
        number, roster = self.next_round(), roster_digest(self._chain.roster)
        attempt = 1 + self._begun(number)[0]
        self._state.write(round_file(number, _ATTEMPT), f"{attempt} {roster}".encode())  # rule 1
        position = self._chain.position
        return Manifest(
            plan_digest=plan_digest(self._chain.plan),
            roster_digest=roster,
            round=number,
            attempt=attempt,
            cohort=tuple(sorted(cohort)),
            cache_digest=position.cache_digest,
            previous_record=position.record_digest,
        )

    def next_round(self) -> int:
        """One more than the last round that happened or was given up (rule 2).

        A round that was begun with another roster is over too: a silo sends an update under one roster only.
        """
        roster, numbers = roster_digest(self._chain.roster), round_numbers(self._state)
        ended = (n for n in numbers if self._state.has(round_file(n, _GIVEN_UP)))
        foreign = (n for n in numbers if self._begun(n)[1] not in ("", roster))
        return max(self._chain.position.round, *ended, *foreign, 0) + 1

    def _begun(self, number: int) -> tuple[int, str]:
        """(last attempt, digest of its roster); (0, "") before the first."""
        name = round_file(number, _ATTEMPT)
        if not self._state.has(name):
            return 0, ""
        attempt, _, roster = self._state.read(name).decode("ascii", "replace").partition(" ")
        if not attempt.isdecimal() or len(roster) != 64:
            raise ConfigError(str(self._state.path(name)), "", "not an attempt and the digest of a roster")
        return int(attempt), roster

    def _certify(
        self, session: CoordinatorSession, manifest: Manifest, attendance: Attendance, progress: Progress
    ) -> None:
        """From the manifest to the certificate, which is on disk when this returns, and nowhere else yet."""
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
        if RoundParameters.derive(self._chain.plan, len(cohort), len(self._keys)).ring is not None:
            # On a ring a silo that has signed sends that update no more, also if this process dies while it asks.
            self._state.write(round_file(manifest.round, _GIVEN_UP), b"")
        session.on_statements(self._ask(letters.CERTIFICATE, survivor_sets, attendance))
        progress(4, len(PHASES), what)
        saved = unmasking_to_bytes(session.unmasking)
        self._state.write(round_file(manifest.round, _UNMASKING), saved, private=True)  # rule 2

    def _publish(
        self,
        session: CoordinatorSession,
        manifest: Manifest,
        aggregate: AggregateSum,
        parameters: RoundParameters,
    ) -> tuple[RoundRecord, bytes, bytes]:
        decoded, survivors = decode_sum(aggregate, parameters), sorted(session.survivors)
        after = self._chain.after(decoded, len(survivors))
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
        seconds = self._gather_seconds if phase == letters.HELLO else self._deadline_seconds
        replies = self._channel.exchange(phase, requests, seconds)
        attendance.absent |= set(requests) - set(replies)
        attendance.heard |= set(replies)
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

"""A silo's side of every exchange: check, reserve, train, seal, mask, answer, verify.

Rules, in the order in which they bite:

 1. Nothing that matters is believed from the coordinator: plan, roster and cache are pinned by digest, the
    roster countersigned by all silos in it and followed by another only with a quorum of its members,
    the threshold and the encoding are derived here, rounds and attempts only grow.
 2. A message is verified before anything is charged for it, and the ledger is charged, durably, before
    training. There is no refund.
 3. The noised update is sealed on disk before it is masked. A later attempt of the same round sends the
    same update under fresh masks and costs nothing.
 4. Once this silo has answered an unmask request (on a ring: signed), it never sends that update again: two
    sums that differ by one silo give that silo's update. One that was not asked may: thresholds are counted over
    the roster, so over one round's updates at most one sum is opened (decision 0011).
 5. The statement that this silo signs about an attempt's survivors is on disk before the signature leaves.
    No second one is signed in that attempt, nor the attempt entered again, also after a restart.
 6. A reply is durable before it leaves. A silo that was killed goes on with the same bytes, or drops out.
    What is written when, and what a restart makes of it, stands in ``silo_attempt``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cachefl_secure.crypto.sign import verify
from cachefl_secure.errors import (
    BudgetExhausted,
    ConfigError,
    LedgerRolledBack,
    LocalProtocolError,
    PeerError,
    PrivacyError,
    ProtocolError,
)
from cachefl_secure.federation import letters
from cachefl_secure.federation.certified import check_against_signed, signed_statement
from cachefl_secure.federation.chain import Chain, install_initial_cache
from cachefl_secure.federation.confirming import ready_approval
from cachefl_secure.federation.countersigning import (
    check_all_countersigned,
    countersign,
    keep_countersignatures,
    kept_countersignatures,
)
from cachefl_secure.federation.declining import Decline, reason_of
from cachefl_secure.federation.enrolment import open_roster
from cachefl_secure.federation.following import check_place_of_this_silo, pin_first_roster
from cachefl_secure.federation.letters import Hello, Receipt, Reply, Standing, Sync
from cachefl_secure.federation.record import genesis, open_record, smallest_cohort
from cachefl_secure.federation.roster_change import RosterChange
from cachefl_secure.federation.roster_files import CHANGE_FILE, keep_pending, read_history
from cachefl_secure.federation.sealed_update import discard_updates
from cachefl_secure.federation.session_file import discard_journals, last_attempt
from cachefl_secure.federation.silo_attempt import OPACUS, SiloAttempt, Trainer, UpdateSpent, may_enter
from cachefl_secure.federation.silo_files import LEDGER_FILE, SiloFiles
from cachefl_secure.federation.standing_aside import standing_aside
from cachefl_secure.federation.state_dir import ROSTER_FILE, round_numbers, utc_now
from cachefl_secure.names import COORDINATOR, Digest, SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.privacy.ledger import Ledger
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import open_manifest
from cachefl_secure.protocol.messages import (
    Manifest,
    Roster,
    roster_digest,
)
from cachefl_secure.protocol.parameters import RoundParameters


class SiloService:
    """One silo, answering a coordinator. ``handle`` is the ``ports.Handler`` that a transport serves.

    ``take_trouble`` gives the last error that made it decline: for this silo's operator only.
    """

    def __init__(self, files: SiloFiles, ledger: Ledger, trainer: Trainer = OPACUS) -> None:
        """Goes on where a killed process stopped; ``take_trouble`` says so if that was not possible.

        Raises:
            LocalProtocolError: a trainer with repeatable noise, which others could subtract.
        """
        if trainer.randomness != "os":
            raise LocalProtocolError("noise of a test's streams takes part in no federation")
        self._files, self._ledger, self._trainer = files, ledger, trainer
        self._identity = files.state.signing_key()
        self._chain: Chain | None = None
        self._attempt: SiloAttempt | None = None
        self._trouble: Exception | None = None
        self._countersigned = False
        if files.state.has(ROSTER_FILE):
            self._open_chain()
            self._resume(self._open())

    def _resume(self, chain: Chain) -> None:
        self._discard(chain.position.round)  # what a crash after the record left behind
        try:
            self._attempt = SiloAttempt.resume(chain, self._files, self._ledger, self._trainer)
        except (ConfigError, ProtocolError) as error:
            self._trouble = error  # this silo drops out of that attempt, and enters the next one

    @property
    def silo(self) -> SiloId:
        return self._files.silo

    def take_trouble(self) -> Exception | None:
        trouble, self._trouble = self._trouble, None
        return trouble

    def handle(self, phase: str, content: bytes) -> bytes:
        """The reply to one request. Never raises: whatever went wrong, the coordinator gets a reason."""
        try:
            return wire.encode(Reply(self._answer(phase, content)))
        except Exception as error:  # a silo that waits for the next request must survive this one
            if not isinstance(error, Decline | UpdateSpent):
                self._trouble = error
            return wire.encode(Reply(b"", reason_of(error)))

    def _answer(self, phase: str, content: bytes) -> bytes:
        match phase:
            case letters.HELLO:
                return self._on_hello(wire.decode(content, Hello, limit_bytes=1 << 12, peer=COORDINATOR))
            case letters.SYNC:
                limit = letters.MAX_LETTER_BYTES
                return self._on_sync(wire.decode(content, Sync, limit_bytes=limit, peer=COORDINATOR))
            case letters.MANIFEST:
                return self._on_manifest(content)
            case letters.SHARE:
                return self._running().session.on_key_list(content)
            case letters.MASKED_INPUT:
                return self._running().on_share_delivery(content)
            case letters.CERTIFICATE:
                return self._running().on_survivor_set(content)
            case letters.UNMASK:
                return self._running().on_certificate(content)
            case _:
                raise Decline("protocol-error")

    # --- enrolment and records

    def _on_hello(self, hello: Hello) -> bytes:
        self._check_willing()
        if hello.plan_digest != plan_digest(self._files.plan):
            raise Decline("plan-differs")
        if hello.receipt is not None and self._signed(hello.receipt):
            self._check_head(hello.receipt.ledger_head, "a receipt that this silo signed")
        position = self._chain.position if self._chain else genesis(self._files.plan)
        chain = self._chain
        shortage = self._shortage()
        self._note_shortage(shortage, position.round)
        standing = Standing(
            has_roster=chain is not None,
            is_countersigned=chain is not None and self._is_countersigned(chain),
            has_cache=self._files.state.has("models/0000.safetensors"),
            round=position.round,
            record_digest=position.record_digest,
            has_budget=shortage is None,
            charged_round=self._charged_round(),
            epoch=chain.roster.epoch if chain is not None else 0,
            approval=ready_approval(self._files, chain.rosters) if chain is not None else None,
        )
        return wire.encode(standing)

    def _on_sync(self, sync: Sync) -> bytes:
        if sync.initial_cache and not self._files.state.has("models/0000.safetensors"):
            install_initial_cache(self._files.state, self._files.plan, sync.initial_cache)
        changes = list(sync.changes)
        if sync.roster:
            self._pin(sync.roster, changes)
        chain = self._open()
        for synced in sync.rounds:
            while changes and not self._knows_roster_of(chain, synced):
                self._follow(chain, changes.pop(0))  # records of the epoch before come first
            self._on_record(chain, synced)
        for change in changes:
            self._follow(chain, change)
        if sync.countersignatures:
            signatures = {SiloId(signed.silo): signed for signed in sync.countersignatures}
            check_all_countersigned(signatures, chain.roster)
            keep_countersignatures(self._files.state, signatures, chain.roster.epoch)
        if sync.proposal is not None:
            chain.rosters.check_proposal(sync.proposal)
            keep_pending(self._files.state, sync.proposal)  # for the operator: approving is not done here
        self._note_shortage(self._shortage(), chain.position.round)
        return wire.encode(self._receipt(chain))

    def _is_countersigned(self, chain: Chain) -> bool:
        """Whether this silo holds every member's signature of the roster that it pinned."""
        if not self._countersigned:
            self._countersigned = set(kept_countersignatures(self._files.state, chain.roster)) == _names(
                chain.roster
            )
        return self._countersigned

    def _pin(self, raw: bytes, changes: Sequence[RosterChange]) -> None:
        if self._chain is None:
            pin_first_roster(raw, changes, self._files)
            self._open_chain()
        elif roster_digest(open_roster(raw, self._files.plan)) != roster_digest(
            self._chain.rosters.rosters[0]
        ):
            raise Decline("roster-differs")

    def _follow(self, chain: Chain, change: RosterChange) -> None:
        """Goes to the next roster and never back. What was begun under the old one is over."""
        offered = open_roster(change.roster, self._files.plan)
        if offered.epoch <= chain.roster.epoch:
            if offered != chain.rosters.rosters[offered.epoch - 1]:
                raise Decline("roster-differs")
            return
        following = chain.rosters.follow(change).current
        has_new_key = check_place_of_this_silo(following, self._files)
        chain.follow(change)
        self._files.state.remove(CHANGE_FILE)
        self._countersigned = False
        if self._attempt is not None:
            self._attempt.abandon(f"the roster of epoch {following.epoch} follows")
            self._attempt = None
        discard_journals(self._files.state, self._latest_round())
        if has_new_key:
            self._files.take_next_key(self._ledger, following)
            self._identity = self._files.state.signing_key()

    def _knows_roster_of(self, chain: Chain, synced: letters.SyncedRound) -> bool:
        record, _ = open_record(synced.record, self._files.plan)
        return chain.rosters.named(record.roster_digest) is not None

    def _open_chain(self) -> None:
        rosters = read_history(self._files.state, self._files.plan)
        check_place_of_this_silo(rosters.current, self._files)
        self._chain = Chain(self._files.state, self._files.plan, rosters)

    def _on_record(self, chain: Chain, synced: letters.SyncedRound) -> None:
        before = chain.position.round
        self._check_own_words(synced.record)
        seen = self._attempt.participation if self._attempt else None
        record = chain.extend(synced.record, synced.aggregate, seen)
        if record.round > before:
            plan = plan_digest(self._files.plan)
            if self._ledger.spend_of(plan, record.round) is not None:
                head = chain.position.record_digest
                self._ledger.note_receipt(plan, record.round, head, timestamp=utc_now())
            self._discard(record.round)
            self._attempt = None

    def _discard(self, until_round: int) -> None:
        """The updates and secrets of rounds that are over."""
        discard_updates(self._files.state, until_round)
        discard_journals(self._files.state, until_round)

    def _check_own_words(self, raw: bytes) -> None:
        """A record may prove that this silo's directory is an older copy, or contradict what it signed."""
        record, _ = open_record(raw, self._files.plan)
        check_against_signed(self._files.state, record)
        head = record.ledger_heads.get(self.silo)
        if head is not None:
            # The coordinator's word, so no proof: this ledger was rolled back, or the coordinator lies.
            self._check_head(head, "a record that the coordinator signed, or it lies")

    def _check_head(self, head: str, witness: str) -> None:
        if not self._ledger.contains(Digest(head)):
            raise LedgerRolledBack(LEDGER_FILE, self._ledger.head, head, witness)

    def _signed(self, receipt: Receipt) -> bool:
        """Anybody can make up a receipt. One that this silo did not sign says nothing."""
        try:
            own = self._identity.public_key
            signed = letters.receipt_bytes(receipt)
            verify(own, letters.RECEIPT_PURPOSE, signed, receipt.signature, peer=self.silo)
        except PeerError:
            return False
        return receipt.silo == self.silo

    def _receipt(self, chain: Chain) -> Receipt:
        unsigned = Receipt(
            silo=self.silo,
            round=chain.position.round,
            record_digest=chain.position.record_digest,
            roster_digest=roster_digest(chain.roster),
            ledger_head=self._ledger.head,
            signature=bytes(64),
            countersignature=None
            if self.silo not in chain.roster.public_keys or self._is_countersigned(chain)
            else countersign(chain.roster, self.silo, self._identity),
        )
        signature = self._identity.sign(letters.RECEIPT_PURPOSE, letters.receipt_bytes(unsigned))
        return msgspec.structs.replace(unsigned, signature=signature)

    # --- one attempt

    def _check_willing(self) -> None:
        """An operator may stand aside from the next round on; what was begun goes on."""
        if (reason := standing_aside(self._files.state)) is not None:
            raise Decline(reason)

    def _on_manifest(self, content: bytes) -> bytes:
        chain, plan = self._open(), self._files.plan
        manifest = open_manifest(content, plan.coordinator_key)
        if self._attempt is not None and self._attempt.manifest == manifest:
            return self._attempt.session.advertise()  # the same request again: the same reply
        self._check_willing()
        self._check_manifest(manifest, chain)
        self._check_not_released(chain, manifest.round)
        try:
            parameters = RoundParameters.derive(plan, len(manifest.cohort), len(chain.roster.members))
        except ConfigError as error:
            self._trouble = error
            raise Decline("cohort-refused") from None
        self._check_budget(manifest.round)
        if self._attempt is not None:
            self._attempt.abandon(f"followed by round {manifest.round} attempt {manifest.attempt}")
            self._attempt = None
        attempt = SiloAttempt.enter(manifest, parameters, chain, self._files, self._ledger, self._trainer)
        reply = attempt.session.advertise()
        self._attempt = attempt
        discard_journals(self._files.state, manifest.round - 1)
        return reply

    def _check_manifest(self, manifest: Manifest, chain: Chain) -> None:
        if manifest.plan_digest != plan_digest(self._files.plan):
            raise Decline("plan-differs")
        if self.silo not in chain.roster.public_keys:
            raise Decline("removed" if chain.rosters.removal_of(self.silo) else "not-enrolled")
        if manifest.roster_digest != roster_digest(chain.roster):
            raise Decline("roster-differs")
        if not self._is_countersigned(chain):
            raise Decline("roster-not-countersigned")
        if manifest.previous_record != chain.position.record_digest or manifest.round <= chain.position.round:
            raise Decline("stale-round")
        if manifest.cache_digest != chain.position.cache_digest:
            raise Decline("cache-differs")
        if self.silo not in manifest.cohort or not set(manifest.cohort) <= _names(chain.roster):
            raise Decline("cohort-refused")
        if len(manifest.cohort) < smallest_cohort(self._files.plan, chain.roster):
            raise Decline("cohort-refused")
        if manifest.round < self._latest_round() or manifest.attempt <= self._last_attempt(manifest.round):
            raise Decline("stale-round")
        if not may_enter(self._files.state, manifest):
            raise Decline("update-already-released")  # rule 4

    def _latest_round(self) -> int:
        return max(round_numbers(self._files.state), default=0)

    def _last_attempt(self, round_number: int) -> int:
        signed = signed_statement(self._files.state, round_number)
        return max(last_attempt(self._files.state, round_number), signed[0] if signed else 0)  # rule 5

    def _check_not_released(self, chain: Chain, round_number: int) -> None:
        """With one release there is no second one, whatever budget is left, nor another after one that came to nothing."""
        if not self._files.plan.is_one_release:
            return
        plan = plan_digest(self._files.plan)
        may_have_left = any(
            spend.plan_digest == plan and spend.round != round_number and spend.update_digest is not None
            for spend in self._ledger.spends
        )
        if chain.position.round > 0 or may_have_left:
            raise Decline("update-already-released")

    def _check_budget(self, round_number: int) -> None:
        """Declines before the round starts what ``reserve`` would refuse later; charges nothing."""
        is_charged = self._ledger.spend_of(plan_digest(self._files.plan), round_number) is not None
        if not is_charged and (shortage := self._shortage()) is not None:
            raise shortage

    def _charged_round(self) -> int:
        """The last round of this federation that was charged: sending in it again costs nothing."""
        plan = plan_digest(self._files.plan)
        return max((spend.round for spend in self._ledger.spends if spend.plan_digest == plan), default=0)

    def _shortage(self) -> PrivacyError | None:
        """Why no further round may be charged; None if one may."""
        try:
            self._ledger.check(self._files.terms)
        except BudgetExhausted as error:
            return BudgetExhausted(
                error.spent, error.asked, error.cap, error.view, self._files.caps_files(error)
            )
        except PrivacyError as error:
            return error
        return None

    def _note_shortage(self, shortage: PrivacyError | None, recorded: int) -> None:
        """The coordinator leaves this silo out without asking it: its operator should know why.

        Not while the round that was charged last may still go on, nor after a plan's one release.
        """
        is_over = self._files.plan.is_one_release and recorded > 0
        if shortage is not None and self._charged_round() <= recorded and not is_over:
            self._trouble = shortage

    def _running(self) -> SiloAttempt:
        if self._attempt is None:
            raise Decline("stale-round")
        return self._attempt

    def _open(self) -> Chain:
        if self._chain is None:
            raise Decline("not-enrolled")
        return self._chain


def _names(roster: Roster) -> set[str]:
    return {member.silo for member in roster.members}

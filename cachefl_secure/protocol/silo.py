"""A silo's half of one attempt.

The rules that the silo enforces itself, whatever the coordinator says:

 1. manifest, plan, roster and parameters belong together, and this silo is in the cohort;
 2. the key list holds this silo's own advertisement, unmodified, and every neighbour's under its roster key;
 3. no list of silos names anyone outside the list before it: roster, cohort, U1 (keys), U2 (shares),
    U3 (survivors); each contains this silo and at least ``minimum_survivors``, on a ring also enough
    of any k / 2 in a row;
 4. one masked input, hence one vector under these masks;
 5. it signs one survivor set, and only if every survivor's signed header verifies and its own is the
    masked input that it sent;
 6. it reveals nothing before a quorum has signed the very statement that it signed itself: manifest, key
    list, U2, U3 and masked inputs;
 7. then, for each silo of U2, exactly one kind of share: its self mask if it survived, its mask key if it
    dropped out;
 8. every message is answered once; the same bytes again get the saved reply, other bytes are refused,
    also after the process was killed: a reply is in the journal before it leaves.

The states that enforce them are in ``answering``; the session holds the live one.
"""

from __future__ import annotations

from typing import TypeVar

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import LocalProtocolError, PeerError, SurvivorSetRejected, UnexpectedMessage
from cachefl_secure.names import COORDINATOR, Digest, PublicKeyHex, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.answering import (
    AwaitingCertificate,
    AwaitingKeyList,
    AwaitingShareDelivery,
    AwaitingSurvivorSet,
    Finished,
    Invited,
    Party,
    State,
)
from cachefl_secure.protocol.attempt import Attempt
from cachefl_secure.protocol.journal import Exchange, Save, SentInput, SessionJournal
from cachefl_secure.protocol.masked_input import InputBuffer
from cachefl_secure.protocol.messages import (
    Body,
    Certificate,
    KeyList,
    Manifest,
    Phase,
    Roster,
    ShareDelivery,
    SurvivorSet,
)
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.silo_secrets import SiloSecrets
from cachefl_secure.protocol.vectors import Unmasked

_B = TypeVar("_B", bound=Body)


def keep_in_memory(journal: SessionJournal) -> None:
    """A ``Save`` that saves nothing: a session that dies with its process."""


class SiloSession:
    """Holds the live state of one silo in one attempt; bytes in, bytes out.

    Every ``on_*`` raises a ``PeerError`` (``MalformedMessage``, ``BadSignature``, ``UnexpectedMessage``,
    ``SurvivorSetRejected``) if the message is not acceptable. The session is then as it was before.
    So it is if ``save`` raises: no reply leaves that is not in the journal.
    """

    def __init__(
        self,
        manifest: Manifest,
        silo: SiloId,
        identity: SigningKey,
        roster: Roster,
        coordinator_key: PublicKeyHex,
        parameters: RoundParameters,
        secrets: SiloSecrets,
        save: Save = keep_in_memory,
    ) -> None:
        """Rule 1. Use ``secrets`` for this session only.

        Raises:
            PeerError: the manifest is of another plan or roster, or its cohort omits this silo.
            LocalProtocolError: the identity is not the one in the roster, or other parameters are due.
        """
        self._attempt = Attempt.begin(manifest, roster, coordinator_key, parameters)
        if silo not in manifest.cohort:
            raise PeerError(COORDINATOR, "cohort omits this silo")
        if self._attempt.public_keys[silo] != identity.public_key:
            raise LocalProtocolError(f"the roster knows {silo} under another key")
        self._silo, self._identity, self._save = silo, identity, save
        self._state: State = Invited(Party(self._attempt, silo, secrets))
        self._journal = SessionJournal(manifest, secrets)
        self._masking: AwaitingShareDelivery | None = None
        self._masked_input: bytes | None = None

    @classmethod
    def resume(
        cls,
        journal: SessionJournal,
        silo: SiloId,
        identity: SigningKey,
        roster: Roster,
        coordinator_key: PublicKeyHex,
        parameters: RoundParameters,
        save: Save = keep_in_memory,
    ) -> SiloSession:
        """The session that wrote ``journal``, after the same messages, with the same replies.

        Raises:
            LocalProtocolError: it does not come out the same: another identity, roster, plan or program.
                This silo must not take part in the attempt any more.
        """
        session = cls(
            journal.manifest, silo, identity, roster, coordinator_key, parameters, journal.secrets, save
        )
        try:
            for exchange in journal.exchanges:
                session._replay(exchange, journal.sent)
        except PeerError as error:
            raise LocalProtocolError(f"the journal does not replay: {error.reason}") from None
        return session

    def advertise(self) -> bytes:
        """The first message. Asked again, the same bytes."""
        return self._answer(Phase.MANIFEST, b"")

    def on_key_list(self, data: bytes) -> bytes:
        """Shares of this silo's secrets, sealed for the others."""
        return self._answer(Phase.KEY_LIST, data)

    def check_share_delivery(self, data: bytes) -> bytes | None:
        """Whether this delivery is acceptable now: returns None, or the saved reply if there is one in memory.

        Changes nothing. For a silo to ask before it charges its ledger and trains.
        """
        if self._exchange(Phase.SHARE_DELIVERY, data) is not None:
            return self._masked_input
        match self._state:
            case AwaitingShareDelivery() as state:
                state.opened(self._open(data, ShareDelivery))
                return None
            case state:
                raise _unexpected(Phase.SHARE_DELIVERY, state)

    def on_share_delivery(self, data: bytes, update: Unmasked, ledger_head: Digest) -> bytes:
        """The masked input. On a repeat in one process the saved reply goes out and ``update`` is not looked at.

        After a restart it is made again from ``update``, with the ledger head of the journal.

        Raises:
            LocalProtocolError: it did not come out as it had left: another update, or another program.
        """
        if self._exchange(Phase.SHARE_DELIVERY, data) is not None:
            return self._masked_input or self._mask_again(data, update)
        match self._state:
            case AwaitingShareDelivery() as state:
                delivery = self._open(data, ShareDelivery)
                following, reply = state.on_share_delivery(delivery, update, ledger_head)
                raw = self._sign_input(reply, following)
                sent = SentInput(following.own, ledger_head)
                self._advance(following, Exchange(Phase.SHARE_DELIVERY, data, b""), sent)
                self._masked_input = raw
                return raw
            case state:
                raise _unexpected(Phase.SHARE_DELIVERY, state)

    def on_survivor_set(self, data: bytes) -> bytes:
        """The signed statement. Whoever calls this keeps ``statement`` on disk before the reply leaves."""
        return self._answer(Phase.SURVIVOR_SET, data)

    def on_certificate(self, data: bytes) -> bytes:
        """The shares that the certified survivor set asks for."""
        return self._answer(Phase.CERTIFICATE, data)

    @property
    def manifest(self) -> Manifest:
        return self._attempt.manifest

    @property
    def ledger_head(self) -> Digest | None:
        """As sent with the masked input, if it was."""
        return self._journal.sent.ledger_head if self._journal.sent else None

    @property
    def survivors(self) -> tuple[SiloId, ...] | None:
        """The survivor set that was signed, if one was."""
        return self._state.survivors if isinstance(self._state, AwaitingCertificate | Finished) else None

    @property
    def statement(self) -> Digest | None:
        """Digest of the statement that was signed, if one was."""
        return self._state.statement if isinstance(self._state, AwaitingCertificate | Finished) else None

    @property
    def is_finished(self) -> bool:
        """Shares were revealed, or the reply that reveals them is in the journal."""
        return isinstance(self._state, Finished)

    def _answer(self, phase: Phase, data: bytes) -> bytes:
        if (saved := self._exchange(phase, data)) is not None:
            return saved.reply
        following, reply = self._step(phase, data)
        raw = self._sign(reply, following)
        self._advance(following, Exchange(phase, data, raw), self._journal.sent)
        return raw

    def _step(self, phase: Phase, data: bytes) -> tuple[State, Body]:
        """One legal message, but for the share delivery, which takes the update."""
        match phase, self._state:
            case Phase.MANIFEST, Invited() as state:
                return state.advertise()
            case Phase.KEY_LIST, AwaitingKeyList() as state:
                return state.on_key_list(self._open(data, KeyList))
            case Phase.SURVIVOR_SET, AwaitingSurvivorSet() as state:
                return state.on_survivor_set(self._open(data, SurvivorSet))
            case Phase.CERTIFICATE, AwaitingCertificate() as state:
                return state.on_certificate(self._open(data, Certificate))
            case _, state:
                raise _unexpected(phase, state)

    def _open(self, data: bytes, kind: type[_B]) -> _B:
        return self._attempt.open(data, kind, sender=COORDINATOR, view=self._state.view)

    def _sign(self, reply: Body, following: State) -> bytes:
        """A reply is signed under the view of the state that it leads to: it has received what it answers."""
        return wire.encode(self._attempt.sign(reply, self._silo, self._identity, following.view))

    def _sign_input(self, reply: InputBuffer, following: AwaitingSurvivorSet) -> bytes:
        return self._attempt.sign_input(reply, following.own, self._silo, self._identity, following.view)

    def _exchange(self, phase: Phase, data: bytes) -> Exchange | None:
        """Rule 8: what was exchanged in this phase, if it began with these bytes."""
        for exchange in self._journal.exchanges:
            if exchange.phase is phase and exchange.request == data:
                return exchange
            if exchange.phase is phase and phase is Phase.SURVIVOR_SET:
                raise SurvivorSetRejected(COORDINATOR, "a second, different survivor-set")
            if exchange.phase is phase:
                raise UnexpectedMessage(COORDINATOR, f"a second, different {phase.value}")
        return None

    def _advance(self, following: State, exchange: Exchange, sent: SentInput | None) -> None:
        """State and journal change together, and before the reply is out."""
        known = self._journal
        journal = SessionJournal(known.manifest, known.secrets, (*known.exchanges, exchange), sent)
        self._save(journal)
        self._state, self._journal = following, journal

    def _replay(self, exchange: Exchange, sent: SentInput | None) -> None:
        following: State
        match exchange.phase, self._state:
            case Phase.SHARE_DELIVERY, AwaitingShareDelivery() as state if sent is not None:
                following = state.resumed(self._open(exchange.request, ShareDelivery), sent.body_digest)
                self._masking = state
            case phase, _:
                following, reply = self._step(phase, exchange.request)
                if self._sign(reply, following) != exchange.reply:
                    raise LocalProtocolError(f"the reply to {phase.value} does not come out as it left")
        known, held = self._journal, (*self._journal.exchanges, exchange)
        self._state = following
        self._journal = SessionJournal(
            known.manifest, known.secrets, held, sent if self._masking is not None else None
        )

    def _mask_again(self, data: bytes, update: Unmasked) -> bytes:
        if self._masking is None or self._journal.sent is None:
            raise LocalProtocolError("a masked input was sent, but the journal does not say which")
        delivery = self._attempt.open(data, ShareDelivery, sender=COORDINATOR, view=self._masking.view)
        head = self._journal.sent.ledger_head
        again, reply = self._masking.on_share_delivery(delivery, update, head)
        if again.own != self._journal.sent.body_digest:
            raise LocalProtocolError("the masked input does not come out as it left")
        self._masked_input = self._sign_input(reply, again)
        return self._masked_input


def _unexpected(phase: Phase, state: State) -> UnexpectedMessage:
    return UnexpectedMessage(COORDINATOR, f"{phase.value} in {type(state).__name__}")

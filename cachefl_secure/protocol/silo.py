"""A silo's half of one attempt.

The rules that the silo enforces itself, whatever the coordinator says:

 1. manifest, plan, roster and parameters belong together, and this silo is in the cohort;
 2. the key list holds this silo's own advertisement, unmodified, and every other under its roster key;
 3. no list of silos names anyone outside the list before it: roster, cohort, U1 (keys), U2 (shares),
    U3 (survivors); each contains this silo and at least ``minimum_survivors``;
 4. one masked input, hence one vector under these masks;
 5. it signs one survivor set, and only if every survivor's signed header verifies and its own is the
    masked input that it sent;
 6. it reveals nothing before a quorum has signed the very statement that it signed itself: manifest, key
    list, U2, U3 and masked inputs;
 7. then, for each silo of U2, exactly one kind of share: its self mask if it survived, its mask key if it
    dropped out;
 8. every message is answered once; the same bytes again get the saved reply, other bytes are refused.

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
from cachefl_secure.protocol.vectors import EncodedUpdate

_B = TypeVar("_B", bound=Body)


class SiloSession:
    """Holds the live state of one silo in one attempt; bytes in, bytes out.

    Every ``on_*`` raises a ``PeerError`` (``MalformedMessage``, ``BadSignature``, ``UnexpectedMessage``,
    ``SurvivorSetRejected``) if the message is not acceptable. The session is then as it was before.
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
        self._silo, self._identity = silo, identity
        self._state: State = Invited(Party(self._attempt, silo, secrets))
        self._answered: dict[Phase, tuple[bytes, bytes]] = {}

    def advertise(self) -> bytes:
        """The first message. Asked again, the same bytes."""
        if (saved := self._saved_reply(Phase.MANIFEST, b"")) is not None:
            return saved
        match self._state:
            case Invited() as state:
                return self._advance(Phase.MANIFEST, b"", *state.advertise())
            case state:
                raise LocalProtocolError(f"advertise in {type(state).__name__}")

    def on_key_list(self, data: bytes) -> bytes:
        if (saved := self._saved_reply(Phase.KEY_LIST, data)) is not None:
            return saved
        match self._state:
            case AwaitingKeyList() as state:
                return self._advance(Phase.KEY_LIST, data, *state.on_key_list(self._open(data, KeyList)))
            case state:
                raise _unexpected(Phase.KEY_LIST, state)

    def check_share_delivery(self, data: bytes) -> bytes | None:
        """Whether this delivery is acceptable now: returns None, or the saved reply if it was answered before.

        Changes nothing. For a silo to ask before it charges its ledger and trains.
        """
        if (saved := self._saved_reply(Phase.SHARE_DELIVERY, data)) is not None:
            return saved
        match self._state:
            case AwaitingShareDelivery() as state:
                state.opened(self._open(data, ShareDelivery))
                return None
            case state:
                raise _unexpected(Phase.SHARE_DELIVERY, state)

    def on_share_delivery(self, data: bytes, update: EncodedUpdate, ledger_head: Digest) -> bytes:
        """On a repeat the saved reply goes out and ``update`` is not looked at."""
        if (saved := self._saved_reply(Phase.SHARE_DELIVERY, data)) is not None:
            return saved
        match self._state:
            case AwaitingShareDelivery() as state:
                delivery = self._open(data, ShareDelivery)
                step = state.on_share_delivery(delivery, update, ledger_head)
                return self._advance(Phase.SHARE_DELIVERY, data, *step)
            case state:
                raise _unexpected(Phase.SHARE_DELIVERY, state)

    def on_survivor_set(self, data: bytes) -> bytes:
        """The signed statement. Whoever calls this keeps ``statement`` on disk before the reply leaves."""
        if (saved := self._saved_reply(Phase.SURVIVOR_SET, data)) is not None:
            return saved
        match self._state:
            case AwaitingSurvivorSet() as state:
                proposal = self._open(data, SurvivorSet)
                return self._advance(Phase.SURVIVOR_SET, data, *state.on_survivor_set(proposal))
            case state:
                raise _unexpected(Phase.SURVIVOR_SET, state)

    def on_certificate(self, data: bytes) -> bytes:
        """The shares that the certified survivor set asks for."""
        if (saved := self._saved_reply(Phase.CERTIFICATE, data)) is not None:
            return saved
        match self._state:
            case AwaitingCertificate() as state:
                certificate = self._open(data, Certificate)
                return self._advance(Phase.CERTIFICATE, data, *state.on_certificate(certificate))
            case state:
                raise _unexpected(Phase.CERTIFICATE, state)

    @property
    def survivors(self) -> tuple[SiloId, ...] | None:
        """The survivor set that was signed, if one was."""
        return self._state.survivors if isinstance(self._state, AwaitingCertificate | Finished) else None

    @property
    def statement(self) -> Digest | None:
        """Digest of the statement that was signed, if one was."""
        return self._state.statement if isinstance(self._state, AwaitingCertificate | Finished) else None

    def _open(self, data: bytes, kind: type[_B]) -> _B:
        return self._attempt.open(data, kind, sender=COORDINATOR)

    def _saved_reply(self, phase: Phase, data: bytes) -> bytes | None:
        """Rule 8."""
        if phase not in self._answered:
            return None
        asked, reply = self._answered[phase]
        if asked != data and phase is Phase.SURVIVOR_SET:
            raise SurvivorSetRejected(COORDINATOR, "a second, different survivor-set")
        if asked != data:
            raise UnexpectedMessage(COORDINATOR, f"a second, different {phase.value}")
        return reply

    def _advance(self, phase: Phase, data: bytes, following: State, reply: Body) -> bytes:
        """State and reply change together, and before the reply is out."""
        raw = wire.encode(self._attempt.sign(reply, self._silo, self._identity))
        self._state, self._answered[phase] = following, (data, raw)
        return raw


def _unexpected(phase: Phase, state: State) -> UnexpectedMessage:
    return UnexpectedMessage(COORDINATOR, f"{phase.value} in {type(state).__name__}")

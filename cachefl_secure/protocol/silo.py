"""A silo's half of one attempt.

The rules that the silo enforces itself, whatever the coordinator says:

 1. manifest, plan, roster and parameters belong together, and this silo is in the cohort;
 2. the key list holds this silo's own advertisement, unmodified, and every other under its roster key;
 3. no list of silos names anyone outside the list before it: roster, cohort, U1 (keys), U2 (shares),
    U3 (survivors); each contains this silo and at least ``minimum_survivors``;
 4. one masked input, hence one vector under these masks;
 5. one survivor set, and for each silo of U2 exactly one kind of share: its self mask if it survived,
    its mask key if it dropped out;
 6. every message is answered once; the same bytes again get the saved reply, other bytes are refused.

A state is frozen and has one method per legal message. Frozen does not mean used once: only
``SiloSession`` may hold a state, and it replaces state and reply together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import LocalProtocolError, PeerError, SurvivorSetRejected, UnexpectedMessage
from cachefl_secure.names import COORDINATOR, Digest, PublicKeyHex, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import Attempt
from cachefl_secure.protocol.masking import KeySchedule, Masks, mask
from cachefl_secure.protocol.messages import (
    Advertisement,
    Body,
    KeyList,
    Manifest,
    MaskedInput,
    Phase,
    RevealedShare,
    Roster,
    SealedShare,
    SealedShares,
    ShareDelivery,
    SurvivorSet,
    UnmaskShares,
)
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.sharing import HeldShares, deal, open_from, seal_for
from cachefl_secure.protocol.silo_secrets import SiloSecrets
from cachefl_secure.protocol.vectors import EncodedUpdate

_B = TypeVar("_B", bound=Body)


@dataclass(frozen=True, slots=True, eq=False)
class Party:
    """What does not change during the attempt: who this silo is, and its secrets."""

    attempt: Attempt
    silo: SiloId
    secrets: SiloSecrets

    def check_members(self, silos: Collection[SiloId], among: Collection[SiloId], what: str) -> None:
        """Rule 3."""
        if not set(silos) <= set(among):
            raise PeerError(COORDINATOR, f"{what} names a silo outside {len(among)} known ones")
        if self.silo not in silos:
            raise PeerError(COORDINATOR, f"{what} omits this silo")
        if len(silos) < self.attempt.parameters.minimum_survivors:
            raise PeerError(COORDINATOR, f"{what} holds {len(silos)} silos, too few")


@dataclass(frozen=True, slots=True, eq=False)
class Invited:
    """The manifest is accepted; nothing was said."""

    party: Party

    def advertise(self) -> tuple[AwaitingKeyList, Advertisement]:
        secrets = self.party.secrets
        advertisement = Advertisement(secrets.mask_key.public_key, secrets.channel_key.public_key)
        return AwaitingKeyList(self.party, advertisement), advertisement


@dataclass(frozen=True, slots=True, eq=False)
class AwaitingKeyList:
    party: Party
    own: Advertisement

    def on_key_list(self, key_list: KeyList) -> tuple[AwaitingShareDelivery, SealedShares]:
        peers = self._verified(key_list)
        self.party.check_members(peers, self.party.attempt.manifest.cohort, "key list")
        if peers[self.party.silo] != self.own:  # rule 2
            raise PeerError(COORDINATOR, "key list changes this silo's advertisement")
        schedule = KeySchedule.of(self.party.attempt.digest, key_list)
        own, secrets = self.party.silo, self.party.secrets
        dealt = deal(secrets, dealer=own, holders=list(peers), attempt=self.party.attempt, schedule=schedule)
        sealed = tuple(
            SealedShare(silo, self._seal(silo, peers[silo], dealt[silo], schedule))
            for silo in peers
            if silo != own
        )
        commitment = schedule.self_mask_commitment(own, secrets.self_mask_seed)
        return AwaitingShareDelivery(self.party, schedule, peers, dealt[own]), SealedShares(
            commitment, sealed
        )

    def _verified(self, key_list: KeyList) -> dict[SiloId, Advertisement]:
        """Rule 2: every advertisement under its silo's roster key, for this very attempt."""
        attempt, peers = self.party.attempt, {}
        for signed in key_list.advertisements:
            if signed.sender not in attempt.manifest.cohort:
                raise PeerError(COORDINATOR, "key list names a silo outside the cohort")
            peers[signed.sender] = attempt.verify(signed, Advertisement, sender=signed.sender)
        return peers

    def _seal(
        self, holder: SiloId, theirs: Advertisement, shares: HeldShares, schedule: KeySchedule
    ) -> bytes:
        return seal_for(
            holder,
            theirs.channel_public_key,
            shares,
            dealer=self.party.silo,
            dealer_key=self.party.secrets.channel_key,
            schedule=schedule,
        )


@dataclass(frozen=True, slots=True, eq=False)
class AwaitingShareDelivery:
    party: Party
    schedule: KeySchedule
    peers: Mapping[SiloId, Advertisement]
    """U1."""
    own: HeldShares

    def on_share_delivery(
        self, delivery: ShareDelivery, update: EncodedUpdate, ledger_head: Digest
    ) -> tuple[AwaitingSurvivorSet, MaskedInput]:
        parameters = self.party.attempt.parameters
        if update.words.dtype != parameters.word or update.words.size != parameters.dimension:
            raise LocalProtocolError("update was encoded for other parameters")
        sharers = delivery.sharers
        self.party.check_members(sharers, self.peers, "share set")
        if [sealed.silo for sealed in delivery.sealed] != [
            silo for silo in sharers if silo != self.party.silo
        ]:
            raise PeerError(COORDINATOR, "shares do not match the share set")
        held = {sealed.silo: self._open(sealed) for sealed in delivery.sealed} | {self.party.silo: self.own}
        masked = mask(update, self._masks(sharers))
        reply = MaskedInput(masked.words.tobytes(), masked.counters.tobytes(), ledger_head)
        return AwaitingSurvivorSet(self.party, held), reply

    def _open(self, sealed: SealedShare) -> HeldShares:
        return open_from(
            sealed.silo,
            self.peers[sealed.silo].channel_public_key,
            sealed.ciphertext,
            holder=self.party.silo,
            holder_key=self.party.secrets.channel_key,
            schedule=self.schedule,
        )

    def _masks(self, sharers: Collection[SiloId]) -> Masks:
        own, secrets = self.party.silo, self.party.secrets
        masks = Masks(added=[self.schedule.self_mask(own, secrets.self_mask_seed)])
        for silo in sharers:
            if silo != own:
                public_key = self.peers[silo].mask_public_key
                masks.pairwise(
                    own, silo, self.schedule.pairwise_mask(own, secrets.mask_key, silo, public_key)
                )
        return masks


@dataclass(frozen=True, slots=True, eq=False)
class AwaitingSurvivorSet:
    party: Party
    held: Mapping[SiloId, HeldShares]
    """One entry per silo of U2."""

    def on_survivor_set(self, answer: SurvivorSet) -> tuple[Finished, UnmaskShares]:
        try:
            self.party.check_members(answer.survivors, self.held, "survivor set")
        except PeerError as error:
            raise SurvivorSetRejected(error.peer, error.reason) from None
        survivors = set(answer.survivors)
        # Rule 5. Both kinds of one silo would open its masked input.
        reply = UnmaskShares(
            self_mask=tuple(
                RevealedShare(silo, self.held[silo].self_mask.reveal())
                for silo in sorted(self.held)
                if silo in survivors
            ),
            mask_key=tuple(
                RevealedShare(silo, self.held[silo].mask_key.reveal())
                for silo in sorted(self.held)
                if silo not in survivors
            ),
        )
        return Finished(), reply


@dataclass(frozen=True, slots=True)
class Finished:
    """Shares were revealed. This attempt's secrets are spent."""


State = Invited | AwaitingKeyList | AwaitingShareDelivery | AwaitingSurvivorSet | Finished


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
        if (saved := self._saved_reply(Phase.SURVIVOR_SET, data)) is not None:
            return saved
        match self._state:
            case AwaitingSurvivorSet() as state:
                answer = self._open(data, SurvivorSet)
                return self._advance(Phase.SURVIVOR_SET, data, *state.on_survivor_set(answer))
            case state:
                raise _unexpected(Phase.SURVIVOR_SET, state)

    def _open(self, data: bytes, kind: type[_B]) -> _B:
        return self._attempt.open(data, kind, sender=COORDINATOR)

    def _saved_reply(self, phase: Phase, data: bytes) -> bytes | None:
        """Rule 6."""
        if phase not in self._answered:
            return None
        asked, reply = self._answered[phase]
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

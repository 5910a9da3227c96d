"""The states of a silo in one attempt: one method per legal message, each giving the next state and the reply.

Each has a ``view``: what this silo has received by then (``attempt.share_view``). Messages to it must be signed
under its view, and its replies are signed under that of the next state.

The rules they enforce are numbered in ``silo``. A state is frozen, but frozen does not mean used once:
only ``silo.SiloSession`` may hold one, and it replaces state and reply together.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cachefl_secure.errors import LocalProtocolError, PeerError, SurvivorSetRejected
from cachefl_secure.names import COORDINATOR, Digest, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import NOTHING_YET, Attempt, body_digest, share_view
from cachefl_secure.protocol.certificate import check_certificate, statement_digest, statement_of
from cachefl_secure.protocol.masked_input import InputBuffer
from cachefl_secure.protocol.masking import KeySchedule, Masks, mask
from cachefl_secure.protocol.messages import (
    Advertisement,
    Body,
    Certificate,
    KeyList,
    MaskedInput,
    RevealedShare,
    SealedShare,
    SealedShares,
    ShareDelivery,
    Statement,
    SurvivorSet,
    UnmaskShares,
)
from cachefl_secure.protocol.sharing import Channel, HeldShares, deal, open_all, seal
from cachefl_secure.protocol.silo_secrets import SiloSecrets
from cachefl_secure.protocol.vectors import Unmasked

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
        if (thin := self.attempt.thin(silos)) is not None:
            left, needed = thin
            raise PeerError(COORDINATOR, f"{what} leaves {left} silos in a row on the ring, not {needed}")

    def neighbours(self, silos: Container[SiloId]) -> list[SiloId]:
        """Those of ``silos`` that share masks and secrets with this one, sorted."""
        return [silo for silo in self.attempt.graph.holders(self.silo) if silo in silos and silo != self.silo]


@dataclass(frozen=True, slots=True, eq=False)
class Invited:
    """The manifest is accepted; nothing was said."""

    party: Party

    @property
    def view(self) -> Digest:
        return NOTHING_YET

    def advertise(self) -> tuple[AwaitingKeyList, Advertisement]:
        secrets = self.party.secrets
        advertisement = Advertisement(secrets.mask_key.public_key, secrets.channel_key.public_key)
        return AwaitingKeyList(self.party, advertisement), advertisement


@dataclass(frozen=True, slots=True, eq=False)
class AwaitingKeyList:
    party: Party
    own: Advertisement

    @property
    def view(self) -> Digest:
        return NOTHING_YET

    def on_key_list(self, key_list: KeyList) -> tuple[AwaitingShareDelivery, SealedShares]:
        listed = [signed.sender for signed in key_list.advertisements]
        self.party.check_members(listed, self.party.attempt.manifest.cohort, "key list")
        peers, own, secrets = self._verified(key_list), self.party.silo, self.party.secrets
        if len(peers) + 1 < self.party.attempt.parameters.secret_threshold:
            raise PeerError(COORDINATOR, f"key list holds {len(peers)} neighbours of this silo, too few")
        schedule = KeySchedule.of(self.party.attempt.digest, key_list)
        dealt = deal(
            secrets, dealer=own, holders=[own, *peers], attempt=self.party.attempt, schedule=schedule
        )
        channels = {
            silo: Channel.between(own, secrets.channel_key, silo, theirs.channel_public_key, schedule)
            for silo, theirs in peers.items()
        }
        sealed = (SealedShare(silo, seal(dealt[silo], channels[silo], schedule)) for silo in peers)
        reply = SealedShares(schedule.self_mask_commitment(own, secrets.self_mask_seed), tuple(sealed))
        mask_public_keys = {silo: theirs.mask_public_key for silo, theirs in peers.items()}
        following = AwaitingShareDelivery(
            self.party, schedule, frozenset(listed), mask_public_keys, channels, dealt[own]
        )
        return following, reply

    def _verified(self, key_list: KeyList) -> dict[SiloId, Advertisement]:
        """Rule 2: the neighbours' advertisements, sorted.

        A key is used by neighbours only, and each honest one verifies it. This silo's own needs no signature:
        it must be the one that it sent.
        """
        attempt, peers = self.party.attempt, {}
        signed = {signed.sender: signed for signed in key_list.advertisements}
        if signed[self.party.silo].body != wire.encode(self.own):
            raise PeerError(COORDINATOR, "key list changes this silo's advertisement")
        for silo in self.party.neighbours(signed):
            peers[silo] = attempt.verify(signed[silo], Advertisement, sender=silo)
        return peers


@dataclass(frozen=True, slots=True, eq=False)
class AwaitingShareDelivery:
    party: Party
    schedule: KeySchedule
    peers: frozenset[SiloId]
    """U1."""
    mask_public_keys: Mapping[SiloId, bytes]
    """Of the neighbours in U1."""
    channels: Mapping[SiloId, Channel]
    own: HeldShares

    @property
    def view(self) -> Digest:
        return self.schedule.key_list

    def on_share_delivery(
        self, delivery: ShareDelivery, update: Unmasked, ledger_head: Digest
    ) -> tuple[AwaitingSurvivorSet, InputBuffer]:
        parameters = self.party.attempt.parameters
        try:
            update.check(parameters)
        except ValueError:
            raise LocalProtocolError("update was encoded for other parameters") from None
        held = self.opened(delivery)
        reply = InputBuffer(self.party.silo, parameters, ledger_head)
        masked = mask(update, self._masks(held), parameters, content=reply.vectors())
        reply.set_counters(masked.counters.tobytes())
        own = body_digest(reply.body())
        return self._answered(delivery, held, own), reply

    def resumed(self, delivery: ShareDelivery, own: Digest) -> AwaitingSurvivorSet:
        """The state after this delivery was answered with the masked input whose body has digest ``own``."""
        return self._answered(delivery, self.opened(delivery), own)

    def _answered(
        self, delivery: ShareDelivery, held: Mapping[SiloId, HeldShares], own: Digest
    ) -> AwaitingSurvivorSet:
        view = share_view(self.schedule.key_list, delivery.sharers)  # once, over all sharers
        return AwaitingSurvivorSet(self.party, self.schedule, delivery.sharers, held, own, view)

    def opened(self, delivery: ShareDelivery) -> dict[SiloId, HeldShares]:
        """Rule 3, and every share opened: what makes a delivery acceptable before anything is trained for it."""
        sharers = delivery.sharers
        self.party.check_members(sharers, self.peers, "share set")
        if [sealed.silo for sealed in delivery.sealed] != self.party.neighbours(frozenset(sharers)):
            raise PeerError(COORDINATOR, "shares do not match the share set")
        return {self.party.silo: self.own} | open_all(delivery.sealed, self.channels, self.schedule)

    def _masks(self, dealers: Collection[SiloId]) -> Masks:
        own, secrets = self.party.silo, self.party.secrets
        masks = Masks(added=[self.schedule.self_mask(own, secrets.self_mask_seed)])
        for silo in dealers:
            if silo != own:
                public_key = self.mask_public_keys[silo]
                masks.pairwise(
                    own, silo, self.schedule.pairwise_mask(own, secrets.mask_key, silo, public_key)
                )
        return masks


@dataclass(frozen=True, slots=True, eq=False)
class AwaitingSurvivorSet:
    party: Party
    schedule: KeySchedule
    sharers: tuple[SiloId, ...]
    """U2."""
    held: Mapping[SiloId, HeldShares]
    """One entry per neighbour in U2, and its own."""
    own: Digest
    """Of the masked input that this silo sent."""
    view: Digest
    """``share_view`` of U2, made once."""

    def on_survivor_set(self, proposal: SurvivorSet) -> tuple[AwaitingCertificate, Statement]:
        self._check(proposal)
        statement = statement_of(
            self.party.attempt.digest, self.schedule.key_list, self.sharers, proposal.uploads
        )
        signed = statement_digest(statement)
        return AwaitingCertificate(self.party, self.held, proposal.survivors, signed), statement

    def _check(self, proposal: SurvivorSet) -> None:
        """Rule 3, then rule 5: every survivor sent the masked input that the proposal names for it."""
        try:
            self.party.check_members(proposal.survivors, self.sharers, "survivor set")
        except PeerError as error:
            raise SurvivorSetRejected(error.peer, error.reason) from None
        if proposal.uploads[self.party.silo] != self.own:
            raise SurvivorSetRejected(COORDINATOR, "survivor set changes this silo's masked input")
        for header in proposal.headers:
            if header.silo != self.party.silo:
                self.party.attempt.verify_digest(
                    MaskedInput, header.silo, header.body_digest, header.signature, self.view
                )


@dataclass(frozen=True, slots=True, eq=False)
class AwaitingCertificate:
    """This silo signed. It reveals shares for what it signed, or nothing."""

    party: Party
    held: Mapping[SiloId, HeldShares]
    survivors: tuple[SiloId, ...]
    statement: Digest
    """As signed."""

    @property
    def view(self) -> Digest:
        return self.statement

    def on_certificate(self, certificate: Certificate) -> tuple[Finished, UnmaskShares]:
        attempt, own = self.party.attempt, self.party.silo
        check_certificate(attempt, self.statement, self.survivors, certificate, own=own)  # rule 6
        survivors = set(self.survivors)
        # Rule 7. Both kinds of one silo would open its masked input.
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
        return Finished(self.survivors, self.statement), reply


@dataclass(frozen=True, slots=True)
class Finished:
    """Shares were revealed for this survivor set. The attempt's secrets are spent."""

    survivors: tuple[SiloId, ...]
    statement: Digest

    @property
    def view(self) -> Digest:
        return self.statement


State = (
    Invited | AwaitingKeyList | AwaitingShareDelivery | AwaitingSurvivorSet | AwaitingCertificate | Finished
)

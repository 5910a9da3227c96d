"""The coordinator's states in one attempt, one method per phase. ``coordinator`` holds the live one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from cachefl_secure.crypto import shamir
from cachefl_secure.crypto.agreement import check_public_key
from cachefl_secure.errors import MalformedMessage, PeerError, RoundAborted, UnexpectedMessage
from cachefl_secure.names import Digest, SiloId
from cachefl_secure.protocol.attempt import Attempt
from cachefl_secure.protocol.certificate import Certified, statement_of
from cachefl_secure.protocol.masking import KeySchedule, Masks, sum_masked, unmask
from cachefl_secure.protocol.messages import (
    Advertisement,
    Body,
    Certificate,
    Header,
    KeyList,
    MaskedInput,
    SealedShare,
    SealedShares,
    ShareDelivery,
    Signed,
    Statement,
    StatementSignature,
    SurvivorSet,
    UnmaskShares,
)
from cachefl_secure.protocol.silo_secrets import MaskPrivateKey, SelfMaskSeed
from cachefl_secure.protocol.vectors import AggregateSum, MaskedSum, MaskedUpdate

B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True)
class Received(Generic[B]):
    """An acceptable answer: the envelope and what it says."""

    signed: Signed
    body: B
    digest: Digest
    """Of the body."""


@dataclass(frozen=True, slots=True, eq=False)
class CollectingAdvertisements:
    attempt: Attempt

    def check(self, silo: SiloId, advertisement: Advertisement) -> None:
        # One unusable key in the list would make every silo refuse it.
        for public_key in (advertisement.mask_public_key, advertisement.channel_public_key):
            check_public_key(public_key, peer=silo)

    def on_advertisements(
        self, arrived: Mapping[SiloId, Received[Advertisement]]
    ) -> tuple[CollectingShares, KeyList]:
        _require(len(arrived), self.attempt.parameters.minimum_survivors)
        key_list = KeyList(tuple(arrived[silo].signed for silo in sorted(arrived)))
        advertised = {silo: arrived[silo].body for silo in sorted(arrived)}
        return CollectingShares(
            self.attempt, KeySchedule.of(self.attempt.digest, key_list), advertised
        ), key_list


@dataclass(frozen=True, slots=True, eq=False)
class CollectingShares:
    attempt: Attempt
    schedule: KeySchedule
    advertised: Mapping[SiloId, Advertisement]
    """U1."""

    def check(self, silo: SiloId, shares: SealedShares) -> None:
        if [sealed.silo for sealed in shares.sealed] != [other for other in self.advertised if other != silo]:
            raise MalformedMessage(silo, "shares are not for the silos of the key list")

    def on_sealed_shares(
        self, arrived: Mapping[SiloId, Received[SealedShares]]
    ) -> tuple[CollectingMaskedInputs, dict[SiloId, ShareDelivery]]:
        _require(len(arrived), self.attempt.parameters.minimum_survivors)
        sharers = tuple(sorted(arrived))
        by_dealer = {
            dealer: {sealed.silo: sealed.ciphertext for sealed in arrived[dealer].body.sealed}
            for dealer in sharers
        }
        deliveries = {
            holder: ShareDelivery(
                sharers,
                tuple(
                    SealedShare(dealer, by_dealer[dealer][holder]) for dealer in sharers if dealer != holder
                ),
            )
            for holder in sharers
        }
        commitments = {silo: arrived[silo].body.self_mask_commitment for silo in sharers}
        return CollectingMaskedInputs(self.attempt, self.schedule, self.advertised, commitments), deliveries


@dataclass(frozen=True, slots=True, eq=False)
class CollectingMaskedInputs:
    attempt: Attempt
    schedule: KeySchedule
    advertised: Mapping[SiloId, Advertisement]
    commitments: Mapping[SiloId, Digest]
    """Of the self-mask seeds of U2."""

    def check(self, silo: SiloId, masked: MaskedInput) -> None:
        parameters = self.attempt.parameters
        if (len(masked.words), len(masked.counters)) != (parameters.packed_bytes, parameters.counter_bytes):
            raise MalformedMessage(
                silo, f"vector of {len(masked.words)} bytes, {parameters.packed_bytes} due"
            )

    def on_masked_inputs(
        self, arrived: Mapping[SiloId, Received[MaskedInput]]
    ) -> tuple[CollectingStatements, SurvivorSet]:
        parameters = self.attempt.parameters
        _require(len(arrived), parameters.minimum_survivors)
        total = sum_masked((_as_vector(received.body) for received in arrived.values()), parameters)
        proposal = SurvivorSet(
            tuple(
                Header(silo, arrived[silo].digest, arrived[silo].signed.signature) for silo in sorted(arrived)
            )
        )
        following = CollectingUnmaskShares(
            self.attempt, self.schedule, self.advertised, self.commitments, proposal.survivors, total
        )
        return CollectingStatements(following, proposal.uploads), proposal


@dataclass(frozen=True, slots=True, eq=False)
class CollectingStatements:
    following: CollectingUnmaskShares
    """What comes after a certificate. Nothing in it was revealed yet."""
    uploads: Mapping[SiloId, Digest]
    """U3."""

    def check(self, silo: SiloId, statement: Statement) -> None:
        if statement != self._statement():
            raise UnexpectedMessage(silo, "signed another statement than the one proposed")

    def _statement(self) -> Statement:
        state = self.following
        return statement_of(state.attempt.digest, state.schedule.key_list, state.commitments, self.uploads)

    def on_statements(
        self, arrived: Mapping[SiloId, Received[Statement]]
    ) -> tuple[CollectingUnmaskShares, Certified]:
        """
        Raises:
            RoundAborted: fewer signatures than the quorum. Nothing was revealed.
        """
        state = self.following
        _require(len(arrived), state.attempt.parameters.quorum)
        signatures = (StatementSignature(silo, arrived[silo].signed.signature) for silo in sorted(arrived))
        sharers = tuple(sorted(state.commitments))
        certificate = Certificate(tuple(signatures))
        return state, Certified(state.schedule.key_list, sharers, self.uploads, certificate)


@dataclass(frozen=True, slots=True, eq=False)
class CollectingUnmaskShares:
    attempt: Attempt
    schedule: KeySchedule
    advertised: Mapping[SiloId, Advertisement]
    commitments: Mapping[SiloId, Digest]
    survivors: tuple[SiloId, ...]
    """U3."""
    total: MaskedSum

    @property
    def dropped(self) -> list[SiloId]:
        """U2 without U3: their pairwise masks still stand in the sum."""
        return [silo for silo in sorted(self.commitments) if silo not in self.survivors]

    def check(self, silo: SiloId, answer: UnmaskShares) -> None:
        for shares, due in ((answer.self_mask, list(self.survivors)), (answer.mask_key, self.dropped)):
            if [revealed.silo for revealed in shares] != due:
                raise MalformedMessage(silo, "shares are not those that the survivor set asks for")
            if not all(shamir.is_share(revealed.share) for revealed in shares):
                raise MalformedMessage(silo, "a share lies outside the field")

    def on_unmask_shares(
        self, arrived: Mapping[SiloId, Received[UnmaskShares]]
    ) -> tuple[Complete, AggregateSum]:
        """Removes the survivors' self masks, and the pairwise masks between survivors and dropped silos.

        Raises:
            RoundAborted: fewer answers than the threshold.
            PeerError: a recovered secret is not the one its silo committed to, through its own fault
                or that of a holder.
        """
        threshold = self.attempt.parameters.threshold
        _require(len(arrived), threshold)
        self_mask_seeds, mask_keys = self._recover(
            {silo: arrived[silo].body for silo in sorted(arrived)[:threshold]}
        )
        left = Masks(added=[self.schedule.self_mask(silo, seed) for silo, seed in self_mask_seeds.items()])
        for dropped, key in mask_keys.items():
            for silo in self.survivors:
                public_key = self.advertised[silo].mask_public_key
                left.pairwise(silo, dropped, self.schedule.pairwise_mask(dropped, key, silo, public_key))
        return Complete(), unmask(self.total, left, self.attempt.parameters)

    def _recover(
        self, answers: Mapping[SiloId, UnmaskShares]
    ) -> tuple[dict[SiloId, SelfMaskSeed], dict[SiloId, MaskPrivateKey]]:
        shares = {
            self.attempt.place(holder): [revealed.share for revealed in (*answer.self_mask, *answer.mask_key)]
            for holder, answer in answers.items()
        }
        try:
            secrets = shamir.combine(shares)
        except ValueError:
            raise PeerError("a silo of the cohort", "shares do not fit together") from None
        split_at = len(self.survivors)
        seeds = dict(zip(self.survivors, map(SelfMaskSeed, secrets[:split_at]), strict=True))
        keys = dict(zip(self.dropped, map(MaskPrivateKey, secrets[split_at:]), strict=True))
        self._check_recovered(seeds, keys)
        return seeds, keys

    def _check_recovered(
        self, seeds: Mapping[SiloId, SelfMaskSeed], keys: Mapping[SiloId, MaskPrivateKey]
    ) -> None:
        for silo, seed in seeds.items():
            if self.schedule.self_mask_commitment(silo, seed) != self.commitments[silo]:
                raise PeerError(silo, "recovered self-mask seed is not the committed one")
        for silo, key in keys.items():
            if key.public_key != self.advertised[silo].mask_public_key:
                raise PeerError(silo, "recovered mask key is not the advertised one")


@dataclass(frozen=True, slots=True)
class Complete:
    """The sum is out."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """Fewer silos than needed. The next attempt has fresh keys."""


State = (
    CollectingAdvertisements
    | CollectingShares
    | CollectingMaskedInputs
    | CollectingStatements
    | CollectingUnmaskShares
    | Complete
    | Aborted
)


def _require(present: int, needed: int) -> None:
    if present < needed:
        raise RoundAborted(present, needed)


def _as_vector(masked: MaskedInput) -> MaskedUpdate:
    """Views of the received bytes; their length was checked."""
    return MaskedUpdate(np.frombuffer(masked.words, np.uint8), np.frombuffer(masked.counters, "<u8"))

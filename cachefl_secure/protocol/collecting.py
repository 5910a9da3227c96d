"""The coordinator's states in one attempt, one method per phase. ``coordinator`` holds the live one.

Each has a ``view``: what a silo must have received whose answers are collected (``attempt.share_view``), and so
what the coordinator's next message is signed under.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from cachefl_secure.crypto import shamir
from cachefl_secure.crypto.agreement import check_public_key
from cachefl_secure.errors import MalformedMessage, RoundAborted, UnexpectedMessage
from cachefl_secure.names import Digest, SiloId
from cachefl_secure.protocol.attempt import NOTHING_YET, Attempt, share_view
from cachefl_secure.protocol.certificate import Certified, statement_digest, statement_of
from cachefl_secure.protocol.masked_input import ArrivedInput
from cachefl_secure.protocol.masking import KeySchedule, Masks, sum_masked, unmask
from cachefl_secure.protocol.messages import (
    Advertisement,
    Body,
    Certificate,
    Header,
    KeyList,
    SealedShare,
    SealedShares,
    ShareDelivery,
    Signed,
    Statement,
    StatementSignature,
    SurvivorSet,
    UnmaskShares,
)
from cachefl_secure.protocol.recovering import Sought, recover
from cachefl_secure.protocol.silo_secrets import MaskPrivateKey, SelfMaskSeed
from cachefl_secure.protocol.vectors import AggregateSum, MaskedSum

B = TypeVar("B", bound=Body)
C = TypeVar("C", bound=Body, contravariant=True)


@dataclass(frozen=True, slots=True)
class Received(Generic[B]):
    """An acceptable answer: the envelope and what it says."""

    signed: Signed
    body: B
    digest: Digest
    """Of the body."""


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedInput:
    """An acceptable masked input: its length was checked, and its signature."""

    masked: ArrivedInput
    digest: Digest
    """Of its body."""


class Collecting(Protocol[C]):
    """What all states have that wait for answers."""

    @property
    def view(self) -> Digest: ...

    def check(self, silo: SiloId, body: C, /) -> None:
        """Raises a ``PeerError`` if this answer counts as none."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CollectingAdvertisements:
    attempt: Attempt

    @property
    def view(self) -> Digest:
        return NOTHING_YET

    def check(self, silo: SiloId, advertisement: Advertisement) -> None:
        # One unusable key in the list would make every silo refuse it.
        for public_key in (advertisement.mask_public_key, advertisement.channel_public_key):
            check_public_key(public_key, peer=silo)

    def on_advertisements(
        self, arrived: Mapping[SiloId, Received[Advertisement]]
    ) -> tuple[CollectingShares, KeyList]:
        _require_enough(self.attempt, arrived)
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

    @property
    def view(self) -> Digest:
        return self.schedule.key_list

    def check(self, silo: SiloId, shares: SealedShares) -> None:
        neighbours = self.attempt.graph.holders(silo)
        due = [other for other in neighbours if other in self.advertised and other != silo]
        if [sealed.silo for sealed in shares.sealed] != due:
            raise MalformedMessage(silo, "shares are not for its neighbours in the key list")

    def on_sealed_shares(
        self, arrived: Mapping[SiloId, Received[SealedShares]]
    ) -> tuple[CollectingMaskedInputs, dict[SiloId, ShareDelivery]]:
        _require_enough(self.attempt, arrived)
        sharers = tuple(sorted(arrived))
        by_dealer = {
            dealer: {sealed.silo: sealed.ciphertext for sealed in arrived[dealer].body.sealed}
            for dealer in sharers
        }
        deliveries = {
            holder: ShareDelivery(
                sharers,
                tuple(
                    SealedShare(dealer, by_dealer[dealer][holder])
                    for dealer in self.attempt.graph.holders(holder)
                    if dealer in by_dealer and dealer != holder
                ),
            )
            for holder in sharers
        }
        commitments = {silo: arrived[silo].body.self_mask_commitment for silo in sharers}
        view = share_view(self.schedule.key_list, sharers)
        return CollectingMaskedInputs(
            self.attempt, self.schedule, self.advertised, commitments, view
        ), deliveries


@dataclass(frozen=True, slots=True, eq=False)
class CollectingMaskedInputs:
    attempt: Attempt
    schedule: KeySchedule
    advertised: Mapping[SiloId, Advertisement]
    commitments: Mapping[SiloId, Digest]
    """Of the self-mask seeds of U2."""
    view: Digest
    """``share_view`` of U2, made once."""

    def on_masked_inputs(
        self, arrived: Mapping[SiloId, ReceivedInput]
    ) -> tuple[CollectingStatements, SurvivorSet]:
        parameters = self.attempt.parameters
        _require_enough(self.attempt, arrived)
        total = sum_masked((received.masked.vector for received in arrived.values()), parameters)
        proposal = SurvivorSet(
            tuple(
                Header(silo, arrived[silo].digest, arrived[silo].masked.signature) for silo in sorted(arrived)
            )
        )
        statement = statement_of(
            self.attempt.digest, self.schedule.key_list, self.commitments, proposal.uploads
        )
        following = CollectingUnmaskShares(
            self.attempt,
            self.schedule,
            self.advertised,
            self.commitments,
            proposal.survivors,
            total,
            statement_digest(statement),
        )
        return CollectingStatements(following, proposal.uploads), proposal


@dataclass(frozen=True, slots=True, eq=False)
class CollectingStatements:
    following: CollectingUnmaskShares
    """What comes after a certificate. Nothing in it was revealed yet."""
    uploads: Mapping[SiloId, Digest]
    """U3."""

    @property
    def view(self) -> Digest:
        return self.following.statement

    def check(self, silo: SiloId, statement: Statement) -> None:
        if statement_digest(statement) != self.following.statement:
            raise UnexpectedMessage(silo, "signed another statement than the one proposed")

    def on_statements(
        self, arrived: Mapping[SiloId, Received[Statement]]
    ) -> tuple[CollectingUnmaskShares, Certified]:
        """
        Raises:
            RoundAborted: fewer signatures than the quorum. Nothing was revealed.
        """
        state = self.following
        quorum = state.attempt.parameters.quorum
        _require(len(arrived), quorum)
        signers = sorted(arrived)[:quorum]  # more would prove nothing more
        signatures = (StatementSignature(silo, arrived[silo].signed.signature) for silo in signers)
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
    statement: Digest
    """That is to be certified: names all of the above."""

    @property
    def view(self) -> Digest:
        return self.statement

    @property
    def dropped(self) -> list[SiloId]:
        """U2 without U3: their pairwise masks still stand in the sum."""
        survivors = frozenset(self.survivors)
        return [silo for silo in sorted(self.commitments) if silo not in survivors]

    def check(self, silo: SiloId, answer: UnmaskShares) -> None:
        held = [owner for owner in self.attempt.graph.holders(silo) if owner in self.commitments]
        survivors = frozenset(self.survivors)
        for shares, survived in ((answer.self_mask, True), (answer.mask_key, False)):
            due = [owner for owner in held if (owner in survivors) is survived]
            if [revealed.silo for revealed in shares] != due:
                raise MalformedMessage(silo, "shares are not those that the survivor set asks for")
            if not shamir.are_shares([revealed.share for revealed in shares]):
                raise MalformedMessage(silo, "a share lies outside the field")

    def on_unmask_shares(
        self, arrived: Mapping[SiloId, Received[UnmaskShares]]
    ) -> tuple[Complete, AggregateSum]:
        """Removes the survivors' self masks, and the pairwise masks between survivors and dropped silos.

        Raises:
            RoundAborted: fewer answers than the threshold.
            SharesRejected: a secret cannot be recovered as its silo committed to it.
        """
        parameters, survivors = self.attempt.parameters, frozenset(self.survivors)
        _require(len(arrived), parameters.threshold)
        answers = {silo: arrived[silo].body for silo in sorted(arrived)}
        sought = self._sought(answers)
        secrets, suspects = recover(sought, parameters.secret_threshold, self.attempt.place)
        left = Masks()
        for found, value in zip(sought, secrets, strict=True):
            owner = found.owner
            if owner in survivors:
                left.added.append(self.schedule.self_mask(owner, SelfMaskSeed(value)))
                continue
            key = MaskPrivateKey(value)
            for silo in self.attempt.graph.holders(owner):
                if silo in survivors:
                    public_key = self.advertised[silo].mask_public_key
                    left.pairwise(silo, owner, self.schedule.pairwise_mask(owner, key, silo, public_key))
        return Complete(frozenset(suspects)), unmask(self.total, left, parameters)

    def _sought(self, answers: Mapping[SiloId, UnmaskShares]) -> list[Sought]:
        """One secret of each silo of U2: the survivors' self-mask seeds, the others' mask keys."""
        shares: dict[SiloId, dict[SiloId, bytes]] = {owner: {} for owner in (*self.survivors, *self.dropped)}
        for holder, answer in answers.items():
            for revealed in (*answer.self_mask, *answer.mask_key):
                shares[revealed.silo][holder] = revealed.share
        survivors = frozenset(self.survivors)
        return [
            Sought(owner, held, partial(self._is_seed if owner in survivors else self._is_key, owner))
            for owner, held in shares.items()
        ]

    def _is_seed(self, owner: SiloId, value: bytes) -> bool:
        commitment = self.schedule.self_mask_commitment(owner, SelfMaskSeed(value))
        return commitment == self.commitments[owner]

    def _is_key(self, owner: SiloId, value: bytes) -> bool:
        return MaskPrivateKey(value).public_key == self.advertised[owner].mask_public_key


@dataclass(frozen=True, slots=True)
class Complete:
    """The sum is out."""

    suspects: frozenset[SiloId]
    """Silos that sent wrong shares, without effect."""


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


def _require_enough(attempt: Attempt, present: Collection[SiloId]) -> None:
    _require(len(present), attempt.parameters.minimum_survivors)
    if (thin := attempt.thin(present)) is not None:
        raise RoundAborted(*thin)


def _require(present: int, needed: int) -> None:
    if present < needed:
        raise RoundAborted(present, needed)

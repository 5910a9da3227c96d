"""Shares between silos: dealt by one, sealed for another, opened there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from cachefl_secure.crypto import shamir
from cachefl_secure.crypto.seal import SealingKey, open_sealed, seal_once
from cachefl_secure.errors import PeerError
from cachefl_secure.names import SiloId
from cachefl_secure.protocol.attempt import Attempt
from cachefl_secure.protocol.masking import KeySchedule
from cachefl_secure.protocol.messages import SealedShare
from cachefl_secure.protocol.silo_secrets import ChannelPrivateKey, MaskKeyShare, SelfMaskShare, SiloSecrets


@dataclass(frozen=True, slots=True)
class HeldShares:
    """What one silo (the dealer) entrusted to another (the holder). At most one of the two is revealed."""

    self_mask: SelfMaskShare
    mask_key: MaskKeyShare


def deal(
    secrets: SiloSecrets,
    *,
    dealer: SiloId,
    holders: Sequence[SiloId],
    attempt: Attempt,
    schedule: KeySchedule,
) -> dict[SiloId, HeldShares]:
    """Shares of the dealer's self-mask seed and mask key for every holder, the dealer itself included."""
    rows = shamir.split(
        [secrets.self_mask_seed.reveal(), secrets.mask_key.reveal()],
        threshold=attempt.parameters.secret_threshold,
        holders=[attempt.place(silo) for silo in holders],
        seed=schedule.share_coefficients(dealer, secrets.share_seed),
    )
    return {
        silo: HeldShares(SelfMaskShare(self_mask), MaskKeyShare(mask_key))
        for silo, (self_mask, mask_key) in zip(holders, rows, strict=True)
    }


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """The keys of one silo with one other for their two sealed messages, from one agreement."""

    outgoing: SealingKey
    incoming: SealingKey

    @classmethod
    def between(
        cls, silo: SiloId, key: ChannelPrivateKey, peer: SiloId, public_key: bytes, schedule: KeySchedule
    ) -> Self:
        """
        Raises:
            PeerError: the peer's public key is unusable.
        """
        shared = key.agree(public_key, peer=peer)
        return cls(
            schedule.channel(shared, dealer=silo, holder=peer),
            schedule.channel(shared, dealer=peer, holder=silo),
        )


def seal(shares: HeldShares, channel: Channel, schedule: KeySchedule) -> bytes:
    """The shares, readable by the channel's other end only. Once per channel."""
    return seal_once(channel.outgoing, shares.self_mask.reveal() + shares.mask_key.reveal(), schedule.context)


def open_all(
    sealed: Sequence[SealedShare], channels: Mapping[SiloId, Channel], schedule: KeySchedule
) -> dict[SiloId, HeldShares]:
    """By dealer, what it gave ``seal``. Only the dealer can have sealed it, for this holder and this attempt.

    Raises:
        PeerError: anything else.
    """
    opened: dict[SiloId, tuple[bytes, bytes]] = {}
    for each in sealed:
        incoming = channels[each.silo].incoming
        pair = open_sealed(incoming, each.ciphertext, schedule.context, peer=each.silo)
        opened[each.silo] = pair[: shamir.SHARE_BYTES], pair[shamir.SHARE_BYTES :]
    if not shamir.are_shares([share for pair in opened.values() for share in pair]):
        dealer = next(dealer for dealer, pair in opened.items() if not shamir.are_shares(pair))
        raise PeerError(dealer, "sealed bytes are no shares")
    return {
        dealer: HeldShares(SelfMaskShare(self_mask), MaskKeyShare(mask_key))
        for dealer, (self_mask, mask_key) in opened.items()
    }

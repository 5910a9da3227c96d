"""Shares between silos: dealt by one, sealed for another, opened there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachefl_secure.crypto import shamir
from cachefl_secure.crypto.seal import open_sealed, seal_once
from cachefl_secure.errors import PeerError
from cachefl_secure.names import SiloId
from cachefl_secure.protocol.attempt import Attempt
from cachefl_secure.protocol.masking import KeySchedule
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
        threshold=attempt.parameters.threshold,
        holders=[attempt.place(silo) for silo in holders],
        seed=schedule.share_coefficients(dealer, secrets.share_seed),
    )
    return {
        silo: HeldShares(SelfMaskShare(self_mask), MaskKeyShare(mask_key))
        for silo, (self_mask, mask_key) in zip(holders, rows, strict=True)
    }


def seal_for(
    holder: SiloId,
    holder_public_key: bytes,
    shares: HeldShares,
    *,
    dealer: SiloId,
    dealer_key: ChannelPrivateKey,
    schedule: KeySchedule,
) -> bytes:
    """The shares, readable by the holder only.

    Raises:
        PeerError: the holder's public key is unusable.
    """
    shared = dealer_key.agree(holder_public_key, peer=holder)
    pair = shares.self_mask.reveal() + shares.mask_key.reveal()
    return seal_once(schedule.channel(shared, dealer=dealer, holder=holder), pair, schedule.context)


def open_from(
    dealer: SiloId,
    dealer_public_key: bytes,
    ciphertext: bytes,
    *,
    holder: SiloId,
    holder_key: ChannelPrivateKey,
    schedule: KeySchedule,
) -> HeldShares:
    """What ``seal_for`` was given. Only the dealer can have sealed it, for this holder and this attempt.

    Raises:
        PeerError: anything else.
    """
    shared = holder_key.agree(dealer_public_key, peer=dealer)
    key = schedule.channel(shared, dealer=dealer, holder=holder)
    pair = open_sealed(key, ciphertext, schedule.context, peer=dealer)
    self_mask, mask_key = pair[: shamir.SHARE_BYTES], pair[shamir.SHARE_BYTES :]
    if not (shamir.is_share(self_mask) and shamir.is_share(mask_key)):
        raise PeerError(dealer, "sealed bytes are no shares")
    return HeldShares(SelfMaskShare(self_mask), MaskKeyShare(mask_key))

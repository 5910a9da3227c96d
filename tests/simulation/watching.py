"""Hooks in production code that note where every mask, share and key comes from. They change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cachefl_secure.crypto import seal, shamir
from cachefl_secure.crypto.agreement import SharedSecret
from cachefl_secure.crypto.seal import SealingKey
from cachefl_secure.names import SiloId
from cachefl_secure.protocol import sharing
from cachefl_secure.protocol.masking import KeySchedule, MaskSeed
from cachefl_secure.protocol.silo_secrets import ChannelPrivateKey, MaskPrivateKey, SelfMaskSeed, SiloSecrets
from tests.simulation.knowledge import Knowledge

Current = Callable[[], tuple[Knowledge, SiloId | None] | None]
"""What is known in the schedule that is played, and who acts; None outside of one."""


def watch(patch: pytest.MonkeyPatch, current: Current) -> None:
    """Until ``patch`` is undone."""
    generate, split, seal_once = SiloSecrets.generate, shamir.split, seal.seal_once
    channel, pairwise_mask, self_mask = KeySchedule.channel, KeySchedule.pairwise_mask, KeySchedule.self_mask
    agree = MaskPrivateKey.agree
    agreed: dict[bytes, frozenset[bytes]] = {}

    def watched_generate() -> SiloSecrets:
        secrets = generate()
        if (now := current()) is not None and now[1] is not None:
            drawn = (secrets.mask_key, secrets.channel_key, secrets.self_mask_seed)
            now[0].secrets[now[1]] |= {secret.reveal() for secret in drawn}
        return secrets

    def watched_agree(self: Any, public_key: bytes, *, peer: str) -> SharedSecret:
        shared = agree(self, public_key, peer=peer)
        if len(agreed) > 1 << 14:
            agreed.clear()
        agreed[shared.reveal()] = frozenset((self.public_key, public_key))
        return shared

    def watched_split(secrets: Sequence[bytes], *, threshold: int, holders: Sequence[int], seed: Any) -> Any:
        rows = split(secrets, threshold=threshold, holders=holders, seed=seed)
        if (now := current()) is not None and rows[0][0] not in now[0].shares:
            for index, secret in enumerate(secrets):
                now[0].polynomials.append((secret, threshold))
                for x, row in zip(holders, rows, strict=True):
                    now[0].shares[row[index]] = (len(now[0].polynomials) - 1, x)
        return rows

    def watched_seal(key: SealingKey, plaintext: bytes, context: bytes) -> bytes:
        ciphertext = seal_once(key, plaintext, context)
        if (now := current()) is not None:
            now[0].sealed[ciphertext] = (key.reveal(), plaintext)
        return ciphertext

    def watched_channel(self: KeySchedule, shared: SharedSecret, **parties: Any) -> SealingKey:
        key = channel(self, shared, **parties)
        if (now := current()) is not None:
            now[0].ends[key.reveal()] = agreed[shared.reveal()]
        return key

    def watched_pairwise(
        self: KeySchedule, silo: SiloId, key: MaskPrivateKey, peer: SiloId, public_key: bytes
    ) -> MaskSeed:
        seed = pairwise_mask(self, silo, key, peer, public_key)
        if (now := current()) is not None:
            now[0].ends[seed.reveal()] = frozenset((key.public_key, public_key))
            now[0].bind(seed.reveal(), (self.manifest, self.key_list))
        return seed

    def watched_self(self: KeySchedule, silo: SiloId, source: SelfMaskSeed) -> MaskSeed:
        seed = self_mask(self, silo, source)
        if (now := current()) is not None:
            now[0].self_masks[seed.reveal()] = source.reveal()
            now[0].bind(seed.reveal(), (self.manifest, self.key_list))
        return seed

    patch.setattr(SiloSecrets, "generate", staticmethod(watched_generate))
    for kind in (MaskPrivateKey, ChannelPrivateKey):
        patch.setattr(kind, "agree", watched_agree)
    patch.setattr(shamir, "split", watched_split)
    patch.setattr(sharing, "seal_once", watched_seal)
    patch.setattr(KeySchedule, "channel", watched_channel)
    patch.setattr(KeySchedule, "pairwise_mask", watched_pairwise)
    patch.setattr(KeySchedule, "self_mask", watched_self)

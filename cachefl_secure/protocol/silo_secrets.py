"""What a silo keeps to itself in one attempt: values, so that the state machine stays a function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from cachefl_secure.crypto.agreement import AgreementKey
from cachefl_secure.crypto.secret import Secret
from cachefl_secure.crypto.shamir import SHARE_BYTES


class MaskPrivateKey(AgreementKey):
    """Agrees on pairwise masks. Shared among the cohort, and revealed if the silo drops out."""

    __slots__ = ()


class ChannelPrivateKey(AgreementKey):
    """Agrees on the keys that seal shares. Another than the mask key, because that one may be revealed."""

    __slots__ = ()


class SelfMaskSeed(Secret):
    """b_i. Shared among the cohort, and revealed if the silo's masked update arrived."""

    __slots__ = ()


class ShareSeed(Secret):
    """Source of the Shamir coefficients. Never shared."""

    __slots__ = ()


class SelfMaskShare(Secret):
    """A Shamir share of a ``SelfMaskSeed``."""

    __slots__ = ()
    length_bytes: ClassVar[int] = SHARE_BYTES


class MaskKeyShare(Secret):
    """A Shamir share of a ``MaskPrivateKey``."""

    __slots__ = ()
    length_bytes: ClassVar[int] = SHARE_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class SiloSecrets:
    """All secrets of one attempt, used for no other. In memory, and sealed in the silo's journal until the round has
    its record or a later attempt is entered; a round that is given up last leaves them there (limit N6).
    """

    mask_key: MaskPrivateKey
    channel_key: ChannelPrivateKey
    self_mask_seed: SelfMaskSeed
    share_seed: ShareSeed

    @classmethod
    def generate(cls) -> Self:
        """Fresh secrets from the operating system."""
        return cls(
            MaskPrivateKey.generate(),
            ChannelPrivateKey.generate(),
            SelfMaskSeed.generate(),
            ShareSeed.generate(),
        )

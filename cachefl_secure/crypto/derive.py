"""HKDF-SHA256 (RFC 5869): every derived secret names its version, purpose, context and parties."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TypeVar

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cachefl_secure.crypto.secret import Secret


class Purpose(Enum):
    """What a derived secret is for. A released value is frozen; a change of meaning takes a new version."""

    PAIRWISE_MASK = "cachefl-secure/CF-SecAgg/1/pairwise-mask-stream"
    SELF_MASK = "cachefl-secure/CF-SecAgg/1/self-mask-stream"
    SHARE_CHANNEL = "cachefl-secure/CF-SecAgg/1/share-channel"
    SHARE_COEFFICIENTS = "cachefl-secure/CF-SecAgg/1/share-coefficients-stream"


S = TypeVar("S", bound=Secret)


def derive(kind: type[S], purpose: Purpose, source: Secret, *, context: bytes, parties: Sequence[str]) -> S:
    """A secret of ``kind`` bound to all arguments: change any one and the result is unrelated.

    ``context`` is public and becomes the salt. The order of ``parties`` counts: sort a pair that must
    agree, do not sort a direction.
    """
    info = b"".join([_prefixed(part.encode()) for part in (purpose.value, *parties)])
    return kind(hkdf_sha256(source.reveal(), salt=context, info=info, length=kind.length_bytes))


def hkdf_sha256(key_material: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 extract and expand; ``length`` in bytes."""
    return HKDF(SHA256(), length, salt, info).derive(key_material)


def _prefixed(part: bytes) -> bytes:
    # Length first, so that ("ab", "c") and ("a", "bc") differ.
    return len(part).to_bytes(4, "big") + part

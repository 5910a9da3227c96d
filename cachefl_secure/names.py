"""Identifiers with a meaning, so that one cannot be passed where another is due."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import NewType

from cachefl_secure.errors import ConfigError

SiloId = NewType("SiloId", str)
"""Lower-case name of a silo, safe in a path: ``[a-z0-9][a-z0-9-]{0,62}``."""

FederationId = NewType("FederationId", str)
"""32 hex digits drawn at ``init``."""

Digest = NewType("Digest", str)
"""SHA-256 as 64 lower-case hex digits."""

PublicKeyHex = NewType("PublicKeyHex", str)
"""Raw Ed25519 public key as 64 lower-case hex digits."""

_SILO_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")

COORDINATOR = "coordinator"
"""The coordinator's name in errors and messages. Reserved: no silo may take it."""


def parse_silo_id(text: str, *, file: str = "--name") -> SiloId:
    """The text as a silo name.

    Raises:
        ConfigError: not ``[a-z0-9][a-z0-9-]{0,62}``, or the reserved name.
    """
    if not _SILO_ID.match(text):
        raise ConfigError(
            file, "", f"{text[:80]!r} is no silo name: use a-z, 0-9 and '-', at most 63 characters"
        )
    if text == COORDINATOR:
        raise ConfigError(file, "", f"{COORDINATOR!r} is reserved")
    return SiloId(text)


_SHORT = 1024  # bytes; one call over joined parts costs less than one a part


def digest_of_joined(label: str, pieces: Sequence[memoryview]) -> Digest:
    """``digest_of`` one part that lies in pieces, of bytes each, without putting it together."""
    raw = label.encode()
    hasher = hashlib.sha256(len(raw).to_bytes(8, "big") + raw)
    hasher.update(sum(map(len, pieces)).to_bytes(8, "big"))
    for piece in pieces:
        hasher.update(piece)
    return Digest(hasher.hexdigest())


def digest_of(label: str, *parts: bytes | memoryview) -> Digest:
    """``hash_of`` in hex, to be shown and sent."""
    return Digest(hash_of(label, *parts).hex())


def hash_of(label: str, *parts: bytes | memoryview) -> bytes:
    """SHA-256 over a purpose label and length-prefixed parts, so that no two lists of parts collide."""
    hasher = hashlib.sha256()
    pending: list[bytes | memoryview] = []
    for part in (label.encode(), *parts):
        pending.append(len(part).to_bytes(8, "big"))
        if len(part) <= _SHORT:
            pending.append(part)
        else:  # a vector, say: not copied
            hasher.update(b"".join(pending))
            hasher.update(part)
            pending = []
    hasher.update(b"".join(pending))
    return hasher.digest()

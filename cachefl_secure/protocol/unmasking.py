"""What a coordinator needs to finish a round once its certificate exists: values, no files.

From then on a new attempt is no way out: silos that have answered put that update into no other sum. So this
is durable before the certificate leaves. It holds no secret: signed public messages, and a sum under masks.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cachefl_secure.names import Digest, SiloId
from cachefl_secure.protocol.messages import Certificate, KeyList, Manifest


class UnmaskingRound(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An attempt between its certificate and its sum."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    manifest: Manifest
    key_list: KeyList
    commitments: dict[SiloId, Digest]
    """Of the self-mask seeds of U2."""
    uploads: dict[SiloId, Digest]
    """U3, each with the digest of its masked input."""
    certificate: Certificate
    asked: tuple[SiloId, ...]
    """Silos that signed: the others must not answer the certificate."""
    total: bytes
    """The masked sum, as ``MaskedSum.to_bytes``."""
    transcript: tuple[str, ...]
    ledger_heads: dict[SiloId, Digest]

    def __repr__(self) -> str:
        return f"UnmaskingRound(round {self.manifest.round}, attempt {self.manifest.attempt})"


def unmasking_to_bytes(round: UnmaskingRound) -> bytes:
    return msgspec.msgpack.encode(round)


def unmasking_from_bytes(content: bytes) -> UnmaskingRound:
    """
    Raises:
        ValueError: not what ``unmasking_to_bytes`` writes.
    """
    try:
        return msgspec.msgpack.decode(content, type=UnmaskingRound)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("not a round between certificate and sum") from None

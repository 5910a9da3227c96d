"""What a silo's session needs to go on after its process was killed: values, no files.

A session is a function of its secrets and of the messages it accepted, and signatures and sealing are
deterministic. So the journal holds these, and every reply as it left, to be sent again and not rebuilt.
The masked input alone, tens of megabytes, is kept as a digest: it is made again from the same update under
the same masks, and leaves only if it comes out the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from cachefl_secure.names import Digest
from cachefl_secure.protocol.messages import Manifest, Phase
from cachefl_secure.protocol.silo_secrets import (
    ChannelPrivateKey,
    MaskPrivateKey,
    SelfMaskSeed,
    ShareSeed,
    SiloSecrets,
)

_Seed = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Exchange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One message that was accepted, and the reply to it."""

    phase: Phase
    """Of the message."""
    request: bytes
    reply: bytes
    """Empty for a masked input: see ``SessionJournal.sent``."""


class SentInput(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The masked input that left, without its vectors."""

    body_digest: Digest
    """As signed, and as a survivor set must name it. Signing is deterministic: same body, same envelope."""
    ledger_head: Digest


@dataclass(frozen=True, slots=True, eq=False)
class SessionJournal:
    """One attempt of one silo, so far. Holds secrets: seal it before it is written anywhere."""

    manifest: Manifest
    secrets: SiloSecrets
    exchanges: tuple[Exchange, ...] = ()
    sent: SentInput | None = None

    def __repr__(self) -> str:
        return f"SessionJournal(round {self.manifest.round}, attempt {self.manifest.attempt})"


Save = Callable[[SessionJournal], None]
"""Makes a journal durable. If it raises, the reply does not leave and the session stays as it was."""


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Annotated[int, Meta(ge=1, le=1)]
    manifest: Manifest
    mask_key: _Seed
    channel_key: _Seed
    self_mask_seed: _Seed
    share_seed: _Seed
    exchanges: tuple[Exchange, ...]
    sent: SentInput | None


def journal_to_bytes(journal: SessionJournal) -> bytes:
    """MessagePack, secrets included."""
    secrets = journal.secrets
    return msgspec.msgpack.encode(
        _Stored(
            1,
            journal.manifest,
            secrets.mask_key.reveal(),
            secrets.channel_key.reveal(),
            secrets.self_mask_seed.reveal(),
            secrets.share_seed.reveal(),
            journal.exchanges,
            journal.sent,
        )
    )


def journal_from_bytes(content: bytes) -> SessionJournal:
    """
    Raises:
        ValueError: not what ``journal_to_bytes`` writes. Says nothing about the content.
    """
    try:
        stored = msgspec.msgpack.decode(content, type=_Stored)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("not a session journal") from None
    secrets = SiloSecrets(
        MaskPrivateKey(stored.mask_key),
        ChannelPrivateKey(stored.channel_key),
        SelfMaskSeed(stored.self_mask_seed),
        ShareSeed(stored.share_seed),
    )
    return SessionJournal(stored.manifest, secrets, stored.exchanges, stored.sent)

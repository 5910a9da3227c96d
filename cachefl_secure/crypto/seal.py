"""AES-256-GCM (SP 800-38D) in the only two ways we use it: once under a fresh key, and at rest."""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cachefl_secure.crypto.secret import Secret
from cachefl_secure.errors import PeerError

TAG_BYTES = 16
_NONCE_BYTES = 12
_AT_REST = "cachefl-secure/at-rest/1/"


class SealingKey(Secret):
    """Seals one message, ever: derived for one attempt, one sender and one recipient."""

    __slots__ = ()


class AtRestKey(Secret):
    """A silo's long-lived key for its own files."""

    __slots__ = ()


def seal_once(key: SealingKey, plaintext: bytes, associated_data: bytes) -> bytes:
    """Ciphertext and tag, ``TAG_BYTES`` longer than ``plaintext``.

    The nonce is fixed, so a second *different* message under one key would break confidentiality:
    that is why the key has its own type.
    """
    return AESGCM(key.reveal()).encrypt(bytes(_NONCE_BYTES), plaintext, associated_data)


def open_sealed(key: SealingKey, ciphertext: bytes, associated_data: bytes, *, peer: str) -> bytes:
    """What ``seal_once`` was given.

    Raises:
        PeerError: sealed under another key, for other associated data, or changed on the way.
    """
    try:
        return AESGCM(key.reveal()).decrypt(bytes(_NONCE_BYTES), ciphertext, associated_data)
    except (InvalidTag, ValueError):
        raise PeerError(peer, "sealed message does not open") from None


def seal_at_rest(key: AtRestKey, purpose: str, plaintext: bytes) -> bytes:
    """nonce || ciphertext || tag under a random nonce. What is sealed for one purpose opens for no other."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key.reveal()).encrypt(nonce, plaintext, (_AT_REST + purpose).encode())


def open_at_rest(key: AtRestKey, purpose: str, sealed: bytes) -> bytes:
    """What ``seal_at_rest`` was given.

    Raises:
        ValueError: truncated, changed, another key or another purpose. The caller knows the file.
    """
    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return AESGCM(key.reveal()).decrypt(nonce, ciphertext, (_AT_REST + purpose).encode())
    except (InvalidTag, ValueError):
        raise ValueError(f"sealed bytes do not open as {purpose!r}") from None

"""Ed25519 identities (RFC 8032): signatures under a purpose label, and fingerprints for people."""

from __future__ import annotations

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cachefl_secure.crypto.secret import Secret
from cachefl_secure.errors import BadSignature
from cachefl_secure.names import PublicKeyHex, digest_of, hash_of

SIGNATURE_BYTES = 64
_LABEL = "cachefl-secure/signature/1"
_FINGERPRINT_LABEL = "cachefl-secure/fingerprint/1"


class SigningKey(Secret):
    """A party's long-term Ed25519 private key (its 32-byte seed)."""

    __slots__ = ("_private_key", "public_key")

    public_key: PublicKeyHex

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._private_key = Ed25519PrivateKey.from_private_bytes(self.reveal())
        self.public_key = PublicKeyHex(self._private_key.public_key().public_bytes_raw().hex())

    def sign(self, purpose: str, message: bytes) -> bytes:
        """A 64-byte signature over (label, purpose, message). One purpose never verifies as another."""
        return self._private_key.sign(_signed_bytes(purpose, message))


def verify(public_key: PublicKeyHex, purpose: str, message: bytes, signature: bytes, *, peer: str) -> None:
    """Returns if the signature is valid; a check that must not be ignored raises.

    Raises:
        BadSignature: wrong key, wrong purpose, changed message, or not a signature at all.
    """
    try:
        _loaded(public_key).verify(signature, _signed_bytes(purpose, message))
    except (InvalidSignature, ValueError):
        raise BadSignature(peer, f"signature of {purpose} does not verify") from None


def fingerprint(public_key: PublicKeyHex) -> str:
    """128 bits of SHA-256 over the public key, as eight groups of four hex digits, to be read aloud."""
    digest = digest_of(_FINGERPRINT_LABEL, bytes.fromhex(public_key))[:32]
    return " ".join(digest[i : i + 4] for i in range(0, 32, 4))


@lru_cache(4096)  # rosters of several federations; the keys are public
def _loaded(public_key: PublicKeyHex) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))


def _signed_bytes(purpose: str, message: bytes) -> bytes:
    # Hashed with length prefixes, so that (purpose, message) has one reading only.
    return hash_of(_LABEL, purpose.encode(), message)

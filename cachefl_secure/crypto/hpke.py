"""HPKE (RFC 9180) in base mode: seals bytes to the holder of an X25519 key.

DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, one message a context. It says nothing about who sealed:
what must have a sender is signed besides.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cachefl_secure.crypto.secret import Secret
from cachefl_secure.errors import PeerError

PUBLIC_KEY_BYTES = 32
OVERHEAD_BYTES = 32 + 16
"""The encapsulated key and the tag."""

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class TransportKey(Secret):
    """A party's X25519 private key for what travels to it. Nothing rests on it but that strangers cannot look on."""

    __slots__ = ("_private_key", "public_key")

    public_key: bytes

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._private_key = X25519PrivateKey.from_private_bytes(self.reveal())
        self.public_key = self._private_key.public_key().public_bytes_raw()

    def open(self, sealed: bytes | memoryview, purpose: bytes, *, peer: str) -> bytes:
        """What ``seal_to`` was given for this key and purpose.

        Raises:
            PeerError: sealed to another key, for another purpose, or changed on the way.
        """
        try:
            return _SUITE.decrypt(sealed, self._private_key, info=purpose)
        except (InvalidTag, ValueError):
            raise PeerError(peer, "sealed message does not open") from None


def seal_to(public_key: bytes, plaintext: bytes, purpose: bytes, *, peer: str) -> bytes:
    """``OVERHEAD_BYTES`` longer than ``plaintext``. ``purpose`` is bound and not sent: HKDF's info.

    Raises:
        PeerError: no X25519 public key, or one with which everybody would know the secret.
    """
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public_key), info=purpose)
    except ValueError:
        raise PeerError(peer, "transport key is unusable") from None

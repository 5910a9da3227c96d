"""X25519 (RFC 7748): two parties, one shared secret."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cachefl_secure.crypto.secret import Secret
from cachefl_secure.errors import PeerError

PUBLIC_KEY_BYTES = 32


class SharedSecret(Secret):
    """The raw X25519 output. Goes into ``derive`` and nowhere else."""

    __slots__ = ()


class AgreementKey(Secret):
    """An X25519 private key; any 32 bytes are one. Subclass it per purpose."""

    __slots__ = ("_private_key", "public_key")

    public_key: bytes

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._private_key = X25519PrivateKey.from_private_bytes(
            self.reveal()
        )  # costs as much as an agreement
        self.public_key = self._private_key.public_key().public_bytes_raw()

    def agree(self, public_key: bytes, *, peer: str) -> SharedSecret:
        """The secret shared with the holder of ``public_key``'s private key.

        Raises:
            PeerError: not 32 bytes, or a point of low order, with which everybody would know the secret.
        """
        try:
            theirs = X25519PublicKey.from_public_bytes(public_key)
            return SharedSecret(self._private_key.exchange(theirs))
        except ValueError:
            raise PeerError(peer, "X25519 public key is unusable") from None


def check_public_key(public_key: bytes, *, peer: str) -> None:
    """Raises ``PeerError`` where ``agree`` would, whatever the private key: low order gives zero for all."""
    _PROBE.agree(public_key, peer=peer)


_PROBE = AgreementKey(bytes(31) + b"\x01")  # known to all; only for the question whether a point is usable

"""HPKE (RFC 9180) in base mode a second time, step by step, with an ephemeral key that a test chooses.

Shares no code with the package; of other libraries X25519 and AES-GCM are used.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEM = b"KEM" + (0x20).to_bytes(2, "big")
_SUITE = b"HPKE" + (0x20).to_bytes(2, "big") + (1).to_bytes(2, "big") + (2).to_bytes(2, "big")


def _extract(salt: bytes, keying: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), keying, "sha256")


def _expand(pseudorandom_key: bytes, info: bytes, length: int) -> bytes:
    block, out = b"", b""
    while len(out) < length:
        block = hmac.digest(pseudorandom_key, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out[:length]


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, keying: bytes) -> bytes:
    return _extract(salt, b"HPKE-v1" + suite + label + keying)


def _labeled_expand(suite: bytes, secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    return _expand(secret, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


def slow_shared_secret(exchanged: bytes, encapsulated: bytes, public_key: bytes) -> bytes:
    """ExtractAndExpand of RFC 9180, 4.1."""
    secret = _labeled_extract(_KEM, b"", b"eae_prk", exchanged)
    return _labeled_expand(_KEM, secret, b"shared_secret", encapsulated + public_key, 32)


def slow_key_and_nonce(shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    """KeySchedule of RFC 9180, 5.1, in base mode."""
    no_psk = _labeled_extract(_SUITE, b"", b"psk_id_hash", b"")
    context = bytes([0]) + no_psk + _labeled_extract(_SUITE, b"", b"info_hash", info)
    secret = _labeled_extract(_SUITE, shared, b"secret", b"")
    return (
        _labeled_expand(_SUITE, secret, b"key", context, 32),
        _labeled_expand(_SUITE, secret, b"base_nonce", context, 12),
    )


def slow_seal(ephemeral: bytes, public_key: bytes, plaintext: bytes, info: bytes, aad: bytes = b"") -> bytes:
    own = X25519PrivateKey.from_private_bytes(ephemeral)
    encapsulated = own.public_key().public_bytes_raw()
    exchanged = own.exchange(X25519PublicKey.from_public_bytes(public_key))
    key, nonce = slow_key_and_nonce(slow_shared_secret(exchanged, encapsulated, public_key), info)
    return encapsulated + AESGCM(key).encrypt(nonce, plaintext, aad)


def slow_open(private_key: bytes, sealed: bytes, info: bytes) -> bytes:
    own = X25519PrivateKey.from_private_bytes(private_key)
    encapsulated = sealed[:32]
    exchanged = own.exchange(X25519PublicKey.from_public_bytes(encapsulated))
    shared = slow_shared_secret(exchanged, encapsulated, own.public_key().public_bytes_raw())
    key, nonce = slow_key_and_nonce(shared, info)
    return AESGCM(key).decrypt(nonce, sealed[32:], b"")

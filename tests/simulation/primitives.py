"""Real cryptography, remembered, and randomness from the seed: what makes ten thousand schedules affordable.

Ed25519 and X25519 are functions of their inputs, so a result may be kept for the next party that asks the
same question. Nothing is simplified: a signature that was never made does not verify.
"""

from __future__ import annotations

import random
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cachefl_secure.crypto import agreement, seal, secret, sign

_SIZE = 1 << 14


_MADE: set[tuple[bytes, bytes, bytes]] = set()
"""(public key, signature, message) of signatures that were made here: these verify."""


def _verify(public_key: bytes, signature: bytes, message: bytes) -> None:
    if (public_key, bytes(signature), message) not in _MADE:
        _verify_other(public_key, bytes(signature), message)


@lru_cache(_SIZE)
def _verify_other(public_key: bytes, signature: bytes, message: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)  # what raises is not kept


@lru_cache(_SIZE)
def _signing_key(private_key: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(private_key)


@lru_cache(_SIZE)
def _sign(private_key: bytes, message: bytes) -> bytes:
    signature = _signing_key(private_key).sign(message)
    if len(_MADE) > _SIZE:
        _MADE.clear()
    _MADE.add((_signing_public_key(private_key).public_bytes_raw(), signature, message))
    return signature


@lru_cache(_SIZE)
def _signing_public_key(private_key: bytes) -> Ed25519PublicKey:
    return _signing_key(private_key).public_key()


@lru_cache(_SIZE)
def _agreement_key(private_key: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(private_key)


@lru_cache(_SIZE)
def _public_key(private_key: bytes) -> X25519PublicKey:
    return _agreement_key(private_key).public_key()


@lru_cache(_SIZE)
def _agree(private_key: bytes, public_key: bytes) -> bytes:
    return _agreement_key(private_key).exchange(X25519PublicKey.from_public_bytes(public_key))


def _verifier(public_key: bytes) -> Any:
    if len(public_key) != 32:
        raise ValueError("length")
    return SimpleNamespace(verify=lambda signature, message: _verify(public_key, signature, bytes(message)))


def _signer(private_key: bytes) -> Any:
    return SimpleNamespace(
        sign=lambda message: _sign(private_key, bytes(message)),
        public_key=lambda: _signing_public_key(private_key),
    )


def _agreer(private_key: bytes) -> Any:
    return SimpleNamespace(
        public_key=lambda: _public_key(private_key),
        exchange=lambda theirs: _agree(private_key, theirs),
    )


def _checked(public_key: bytes) -> bytes:
    X25519PublicKey.from_public_bytes(public_key)
    return public_key


class SeededTokens:
    """Stands in for the module ``secrets`` where production draws from it."""

    def __init__(self) -> None:
        self.rng = random.Random(0)
        self.drawn: list[bytes] = []
        """Everything that was drawn for secrets, for the search in what left."""

    def restart(self, seed: int) -> None:
        self.rng, self.drawn = random.Random(seed), []

    def token_bytes(self, size: int) -> bytes:
        drawn = self.rng.randbytes(size)
        self.drawn.append(drawn)
        return drawn


def remember_primitives(patch: pytest.MonkeyPatch) -> SeededTokens:
    """For this process, until ``patch`` is undone."""
    tokens = SeededTokens()
    patch.setattr(secret, "secrets", tokens)
    patch.setattr(seal, "secrets", tokens)
    patch.setattr(sign, "Ed25519PublicKey", SimpleNamespace(from_public_bytes=_verifier))
    patch.setattr(sign, "Ed25519PrivateKey", SimpleNamespace(from_private_bytes=_signer))
    patch.setattr(agreement, "X25519PrivateKey", SimpleNamespace(from_private_bytes=_agreer))
    patch.setattr(agreement, "X25519PublicKey", SimpleNamespace(from_public_bytes=_checked))
    patch.setattr(agreement, "_PROBE", agreement.AgreementKey(bytes(31) + b"\x01"))
    return tokens

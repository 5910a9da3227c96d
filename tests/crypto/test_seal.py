"""What is sealed opens for its key, data and purpose, and for nothing else; secrets stay out of sight."""

from __future__ import annotations

import copy
import pickle

import pytest

from cachefl_secure.crypto.seal import (
    AtRestKey,
    SealingKey,
    open_at_rest,
    open_sealed,
    seal_at_rest,
    seal_once,
)
from cachefl_secure.crypto.secret import Secret
from cachefl_secure.errors import PeerError

KEY, OTHER = SealingKey(b"k" * 32), SealingKey(b"o" * 32)
REST = AtRestKey(b"r" * 32)


class OneSeed(Secret):
    __slots__ = ()


class OtherSeed(Secret):
    __slots__ = ()


def test_a_sealed_message_opens() -> None:
    assert open_sealed(KEY, seal_once(KEY, b"text", b"ad"), b"ad", peer="x") == b"text"


@pytest.mark.claim("C6")
def test_a_sealed_message_opens_for_nothing_else() -> None:
    sealed = seal_once(KEY, b"text", b"ad")
    flipped = [sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :] for i in range(len(sealed))]
    attempts = [(OTHER, sealed, b"ad"), (KEY, sealed, b"other"), (KEY, sealed[:-1], b"ad"), (KEY, b"", b"ad")]
    for key, ciphertext, associated_data in attempts + [(KEY, f, b"ad") for f in flipped]:
        with pytest.raises(PeerError):
            open_sealed(key, ciphertext, associated_data, peer="x")


def test_a_file_sealed_at_rest_opens_for_its_key_and_purpose_only() -> None:
    sealed = seal_at_rest(REST, "noised update", b"content")
    assert open_at_rest(REST, "noised update", sealed) == b"content"
    assert sealed != seal_at_rest(REST, "noised update", b"content")
    flipped = [sealed[:i] + bytes([sealed[i] ^ 128]) + sealed[i + 1 :] for i in range(len(sealed))]
    attempts = [(AtRestKey(b"o" * 32), "noised update", sealed), (REST, "state", sealed)]
    attempts += [(REST, "noised update", sealed[:size]) for size in range(len(sealed))]
    for key, purpose, content in attempts + [(REST, "noised update", f) for f in flipped]:
        with pytest.raises(ValueError, match="do not open"):
            open_at_rest(key, purpose, content)


@pytest.mark.claim("C15")
def test_a_secret_does_not_print_pickle_or_copy() -> None:
    secret = OneSeed(b"\x41" * 32)
    assert "A" * 4 not in f"{secret!r} {secret} {[secret]}"
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            act(secret)
    with pytest.raises(ValueError, match="takes 32 bytes, got 31") as raised:
        OneSeed(b"\x41" * 31)
    assert "A" * 4 not in str(raised.value)


def test_secrets_of_two_purposes_are_never_equal() -> None:
    assert OneSeed(bytes(32)) == OneSeed(bytes(32))
    assert OneSeed(bytes(32)) != OtherSeed(bytes(32))
    assert OneSeed(bytes(32)) != bytes(32)

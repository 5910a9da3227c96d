"""Project Wycheproof's vectors for known bugs, through our calls. The files are not ours to ship: see below.

They are read from ``WYCHEPROOF_DIR``, or from a ``shared/data/wycheproof`` beside the checkout; without them the
tests are skipped, and say so. Source: C2SP/wycheproof, Apache-2.0.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefl_secure.crypto import seal, sign
from cachefl_secure.crypto.agreement import AgreementKey, check_public_key
from cachefl_secure.crypto.derive import hkdf_sha256
from cachefl_secure.crypto.seal import SealingKey, open_sealed, seal_once
from cachefl_secure.errors import BadSignature, PeerError
from cachefl_secure.names import PublicKeyHex

FOLDER = Path(
    os.environ.get(
        "WYCHEPROOF_DIR", Path(__file__).resolve().parents[2].parent / "shared" / "data" / "wycheproof"
    )
)


def vectors(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(group, test) of a file."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"no Wycheproof vectors: {name} is not at hand (set WYCHEPROOF_DIR)")
    for group in json.loads(path.read_bytes())["testGroups"]:
        for test in group["tests"]:
            yield group, test


def test_x25519_agrees_or_refuses_and_refuses_exactly_what_gives_zero() -> None:
    seen: Counter[str] = Counter()
    for _, test in vectors("x25519_test.json"):
        key, public = AgreementKey(bytes.fromhex(test["private"])), bytes.fromhex(test["public"])
        try:
            shared = key.agree(public, peer="peer").reveal()
        except PeerError:
            assert "ZeroSharedSecret" in test["flags"] or "LowOrderPublic" in test["flags"], test["tcId"]
            assert bytes.fromhex(test["shared"]) == bytes(32)
            with pytest.raises(PeerError):
                check_public_key(public, peer="peer")  # what the coordinator asks before it lists a key
            seen["refused"] += 1
        else:
            assert shared.hex() == test["shared"], test["tcId"]
            assert test["result"] != "invalid"
            check_public_key(public, peer="peer")
            seen["agreed"] += 1
    assert seen == {"agreed": 487, "refused": 31}


def test_ed25519_accepts_what_is_valid_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With our label taken away, so that the vectors' messages are what is signed."""
    monkeypatch.setattr(sign, "_signed_bytes", lambda purpose, message: message)
    seen: Counter[str] = Counter()
    for group, test in vectors("ed25519_test.json"):
        public = PublicKeyHex(group["publicKey"]["pk"])
        message, signature = bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"])
        try:
            sign.verify(public, "purpose", message, signature, peer="peer")
        except BadSignature:
            seen["refused"] += 1
            assert test["result"] == "invalid", test["tcId"]
        else:
            seen["accepted"] += 1
            assert test["result"] == "valid", test["tcId"]
    assert seen == {"accepted": 88, "refused": 63}


def test_hkdf_gives_the_vectors_and_refuses_what_is_too_long() -> None:
    seen: Counter[str] = Counter()
    for _, test in vectors("hkdf_sha256_test.json"):
        ikm, salt, info = (bytes.fromhex(test[name]) for name in ("ikm", "salt", "info"))
        if test["result"] == "invalid":
            with pytest.raises(ValueError, match="derive"):
                hkdf_sha256(ikm, salt=salt, info=info, length=test["size"])
        else:
            assert hkdf_sha256(ikm, salt=salt, info=info, length=test["size"]).hex() == test["okm"]
        seen[test["result"]] += 1
    assert seen == {"valid": 83, "invalid": 3}


def test_aes_gcm_seals_and_opens_the_vectors_of_256_bits_and_refuses_every_changed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys of other lengths have no type here, and nonces of other lengths no call."""
    nonce = [b""]
    monkeypatch.setattr(seal, "bytes", lambda size: nonce[0], raising=False)  # in place of the fixed nonce
    seen: Counter[str] = Counter()
    for group, test in vectors("aes_gcm_test.json"):
        key, aad = bytes.fromhex(test["key"]), bytes.fromhex(test["aad"])
        if group["keySize"] != 256:
            with pytest.raises(ValueError, match="32 bytes"):
                SealingKey(key)
            seen["no such key"] += 1
            continue
        if group["ivSize"] != 96:
            seen["no such nonce"] += 1
            continue
        nonce[0] = bytes.fromhex(test["iv"])
        sealed = bytes.fromhex(test["ct"]) + bytes.fromhex(test["tag"])
        if test["result"] == "valid":
            assert open_sealed(SealingKey(key), sealed, aad, peer="peer").hex() == test["msg"]
            assert seal_once(SealingKey(key), bytes.fromhex(test["msg"]), aad) == sealed
        else:
            with pytest.raises(PeerError):
                open_sealed(SealingKey(key), sealed, aad, peer="peer")
        seen[test["result"]] += 1
    assert seen == {"valid": 39, "invalid": 27, "no such key": 211, "no such nonce": 39}

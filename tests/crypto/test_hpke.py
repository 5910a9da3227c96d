"""HPKE: our calls give RFC 9180, and whatever was changed is refused in one way."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.crypto.hpke import OVERHEAD_BYTES, PUBLIC_KEY_BYTES, TransportKey, seal_to
from cachefl_secure.errors import PeerError
from tests.crypto.slow_hpke import slow_key_and_nonce, slow_open, slow_seal, slow_shared_secret

# From test-vectors.json of RFC 9180 (github.com/cfrg/draft-irtf-cfrg-hpke, the file that its appendix A points to):
# mode 0, kem_id 0x0020, kdf_id 0x0001, aead_id 0x0002; the first of its encryptions.
RFC_9180 = {
    "info": "4f6465206f6e2061204772656369616e2055726e",
    "skRm": "497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d",
    "skEm": "179d4b53b6365c45b600c4163b61d95cbc2f4d9e36f1695558dce265ab8bab11",
    "pkRm": "430f4b9859665145a6b1ba274024487bd66f03a2dd577d7753c68d7d7d00c00c",
    "enc": "6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256",
    "shared_secret": "3101c54c3a4f87439eaac080699ed9bbcc726ffe44e860c0424ccb7e3e2ead7b",
    "key": "f50b0609186798729ed0564b36ef2ef8044f1f9d05636874d1f46c819c7a669f",
    "base_nonce": "151d9929e2449747889bc923",
    "aad": "436f756e742d30",
    "pt": "4265617574792069732074727574682c20747275746820626561757479",
    "ct": "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de125a925cdad859d5b7a",
}


def _of_the_rfc(name: str) -> bytes:
    return bytes.fromhex(RFC_9180[name])


def test_the_slow_hpke_gives_the_vector_of_rfc_9180() -> None:
    own = X25519PrivateKey.from_private_bytes(_of_the_rfc("skEm"))
    exchanged = own.exchange(X25519PublicKey.from_public_bytes(_of_the_rfc("pkRm")))
    shared = slow_shared_secret(exchanged, _of_the_rfc("enc"), _of_the_rfc("pkRm"))
    assert shared == _of_the_rfc("shared_secret")
    assert slow_key_and_nonce(shared, _of_the_rfc("info")) == (_of_the_rfc("key"), _of_the_rfc("base_nonce"))
    sealed = slow_seal(*map(_of_the_rfc, ("skEm", "pkRm", "pt", "info", "aad")))
    assert sealed == _of_the_rfc("enc") + _of_the_rfc("ct")


def test_the_key_schedule_of_rfc_9180_opens_through_our_call() -> None:
    """The vector's own ciphertext has associated data, which we never use: sealed again without, key and nonce its own."""
    ciphertext = AESGCM(_of_the_rfc("key")).encrypt(_of_the_rfc("base_nonce"), _of_the_rfc("pt"), b"")
    recipient = TransportKey(_of_the_rfc("skRm"))
    assert recipient.public_key == _of_the_rfc("pkRm")
    assert recipient.open(_of_the_rfc("enc") + ciphertext, _of_the_rfc("info"), peer="x") == _of_the_rfc("pt")
    with pytest.raises(PeerError):
        recipient.open(_of_the_rfc("enc") + _of_the_rfc("ct"), _of_the_rfc("info"), peer="x")


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.binary(),
    st.binary(max_size=200),
)
def test_our_calls_and_the_slow_hpke_open_what_the_other_sealed(
    recipient: bytes, ephemeral: bytes, plaintext: bytes, purpose: bytes
) -> None:
    key = TransportKey(recipient)
    sealed = seal_to(key.public_key, plaintext, purpose, peer="x")
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES
    assert slow_open(recipient, sealed, purpose) == plaintext
    assert key.open(slow_seal(ephemeral, key.public_key, plaintext, purpose), purpose, peer="x") == plaintext


def test_two_seals_of_the_same_bytes_differ() -> None:
    key = TransportKey(bytes(31) + b"1")
    assert seal_to(key.public_key, b"m", b"p", peer="x") != seal_to(key.public_key, b"m", b"p", peer="x")


def test_every_changed_byte_and_every_cut_is_refused() -> None:
    key = TransportKey(bytes(31) + b"1")
    sealed = seal_to(key.public_key, b"a message", b"purpose", peer="x")
    cuts = [sealed[:length] for length in range(len(sealed))]
    longer = [sealed + b"\0", b"\0" + sealed]
    changed = [
        bytes([*sealed[:place], sealed[place] ^ 1 << bit, *sealed[place + 1 :]])
        for place in range(len(sealed))
        for bit in range(8)
        # RFC 7748 masks the last bit of a public key; the key schedule binds the bytes as sent, so it counts too.
    ]
    for bad in cuts + longer + changed:
        with pytest.raises(PeerError) as refused:
            key.open(bad, b"purpose", peer="somebody")
        assert type(refused.value) is PeerError
        assert refused.value.peer == "somebody"


@given(st.binary(max_size=200), st.binary(max_size=40))
@settings(max_examples=200)
def test_any_bytes_are_refused_with_a_peers_error_and_nothing_else(sealed: bytes, purpose: bytes) -> None:
    with pytest.raises(PeerError):
        TransportKey(bytes(31) + b"1").open(sealed, purpose, peer="x")


def test_another_key_and_another_purpose_are_refused() -> None:
    key, other = TransportKey(bytes(31) + b"1"), TransportKey(bytes(31) + b"2")
    sealed = seal_to(key.public_key, b"m", b"purpose", peer="x")
    for opener, purpose in ((other, b"purpose"), (key, b"purposes"), (key, b"")):
        with pytest.raises(PeerError):
            opener.open(sealed, purpose, peer="x")
        with pytest.raises(InvalidTag):
            slow_open(opener.reveal(), sealed, purpose)


# Points of small order, and what reduces to one: with these everybody knows the shared secret.
SMALL_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_key_with_which_everybody_knows_the_secret_is_refused(point: str) -> None:
    with pytest.raises(PeerError):
        seal_to(bytes.fromhex(point), b"m", b"p", peer="x")
    with pytest.raises(PeerError):
        TransportKey(bytes(31) + b"1").open(bytes.fromhex(point) + bytes(20), b"p", peer="x")


@pytest.mark.parametrize("length", [0, 1, PUBLIC_KEY_BYTES - 1, PUBLIC_KEY_BYTES + 1, 64])
def test_what_is_no_public_key_is_refused(length: int) -> None:
    with pytest.raises(PeerError):
        seal_to(bytes(length), b"m", b"p", peer="x")

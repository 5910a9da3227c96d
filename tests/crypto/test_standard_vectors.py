"""The standards' own vectors, through our calls: they test how we call pyca, not pyca."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given
from hypothesis import strategies as st

from cachefl_secure.crypto import expand
from cachefl_secure.crypto import sign as signatures
from cachefl_secure.crypto.agreement import AgreementKey, check_public_key
from cachefl_secure.crypto.derive import Purpose, derive, hkdf_sha256
from cachefl_secure.crypto.expand import CHUNK_BYTES, Keystream, StreamSeed, apply_masks
from cachefl_secure.crypto.secret import Secret
from cachefl_secure.crypto.sign import SigningKey, fingerprint, verify
from cachefl_secure.errors import BadSignature, PeerError
from cachefl_secure.names import PublicKeyHex


class Seed(Secret):
    __slots__ = ()


class OtherSeed(Secret):
    __slots__ = ()


HKDF_CASES = {
    "A.1": (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    "A.2": (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    "A.3": (
        "0b" * 22,
        "",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
}


@pytest.mark.parametrize("case", HKDF_CASES)
def test_hkdf_gives_the_vectors_of_rfc_5869(case: str) -> None:
    key_material, salt, info, expected = (bytes.fromhex(text) for text in HKDF_CASES[case])
    assert hkdf_sha256(key_material, salt=salt, info=info, length=len(expected)) == expected


@pytest.mark.parametrize(
    ("scalar", "point", "expected"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_agreement_gives_the_vectors_of_rfc_7748_section_5_2(scalar: str, point: str, expected: str) -> None:
    shared = AgreementKey(bytes.fromhex(scalar)).agree(bytes.fromhex(point), peer="x")
    assert shared.reveal().hex() == expected


def test_agreement_gives_the_thousand_iterations_of_rfc_7748() -> None:
    k = u = (9).to_bytes(32, "little")
    for count in range(1000):
        k, u = AgreementKey(k).agree(u, peer="x").reveal(), k
        if count == 0:
            assert k.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_agreement_gives_the_vectors_of_rfc_7748_section_6_1() -> None:
    alice = AgreementKey(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = AgreementKey(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public_key.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public_key.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = alice.agree(bob.public_key, peer="bob")
    assert shared == bob.agree(alice.public_key, peer="alice")
    assert shared.reveal().hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


@pytest.mark.claim("C6")
@pytest.mark.parametrize(
    "point",
    [
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
        "00" * 31,
        "00" * 33,
        "",
    ],
)
def test_points_of_low_order_and_of_wrong_length_are_refused(point: str) -> None:
    for act in (AgreementKey.generate().agree, check_public_key):
        with pytest.raises(PeerError) as raised:
            act(bytes.fromhex(point), peer="silo-b")
        assert raised.value.peer == "silo-b"


def test_an_honest_public_key_passes_the_check() -> None:
    for _ in range(20):
        check_public_key(AgreementKey.generate().public_key, peer="x")


@pytest.mark.parametrize("by_gcm", [False, True])
@pytest.mark.parametrize(
    ("key", "nonce", "plain", "cipher"),
    [
        ("00" * 16, "00" * 12, "00" * 16, "0388dace60b6a392f328c2b971b2fe78"),
        (
            "feffe9928665731c6d6a8f9467308308",
            "cafebabefacedbaddecaf888",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
            "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091473f5985",
        ),
    ],
)
def test_the_keystream_gives_test_cases_2_and_3_of_the_gcm_specification(
    monkeypatch: pytest.MonkeyPatch, by_gcm: bool, key: str, nonce: str, plain: str, cipher: str
) -> None:
    """McGrew and Viega (2005), appendix B, by both ways to the stream."""
    monkeypatch.setattr(expand, "gcm_is_faster", lambda: by_gcm)
    stream = np.empty(len(plain) // 2, np.uint8)
    Keystream(StreamSeed(bytes.fromhex(key + nonce))).fill(stream)
    assert int(stream.tobytes().hex(), 16) == int(plain, 16) ^ int(cipher, 16)


def test_counter_mode_gives_the_vectors_of_sp_800_38a_f_5_1() -> None:
    """What the keystream is compared with below; its own first counter is fixed, so it cannot begin at theirs."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    counter_mode = Cipher(AES128(key), CTR(bytes(range(0xF0, 0x100)))).encryptor()
    assert counter_mode.update(plain).hex() == (
        "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
        "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee"
    )


@pytest.mark.parametrize(
    ("seed", "public_key", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            b"",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
            "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            b"\x72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da0"
            "85ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            b"\xaf\x82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac1"
            "8ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ],
)
def test_signatures_give_the_vectors_of_rfc_8032_section_7_1(
    monkeypatch: pytest.MonkeyPatch, seed: str, public_key: str, message: bytes, signature: str
) -> None:
    """With our label taken away, so that the vectors' messages are what is signed."""
    monkeypatch.setattr(signatures, "_signed_bytes", lambda purpose, message: message)
    key = SigningKey(bytes.fromhex(seed))
    assert key.public_key == public_key
    assert key.sign("purpose", message).hex() == signature
    verify(key.public_key, "purpose", message, bytes.fromhex(signature), peer="x")


def test_a_signature_verifies_for_its_key_purpose_and_message_only() -> None:
    key, other = SigningKey(bytes(32)), SigningKey(bytes(31) + b"1")
    signature = key.sign("p", b"message")
    verify(key.public_key, "p", b"message", signature, peer="x")
    for public_key, purpose, message, signed in [
        (other.public_key, "p", b"message", signature),
        (key.public_key, "q", b"message", signature),
        (key.public_key, "p", b"massage", signature),
        (key.public_key, "p", b"message", signature[:-1]),
        (key.public_key, "p", b"message", bytes(64)),
        (PublicKeyHex("zz"), "p", b"message", signature),
    ]:
        with pytest.raises(BadSignature):
            verify(public_key, purpose, message, signed, peer="x")


def test_a_fingerprint_is_eight_groups_of_four_digits() -> None:
    groups = fingerprint(SigningKey(bytes(32)).public_key).split(" ")
    assert [len(group) for group in groups] == [4] * 8
    assert groups != fingerprint(SigningKey(bytes(31) + b"1").public_key).split(" ")


@pytest.mark.claim("C5")
def test_a_derived_secret_changes_with_every_argument() -> None:
    source, other = Seed(bytes(32)), Seed(bytes(31) + b"1")
    variants = [
        derive(Seed, Purpose.SELF_MASK, source, context=b"c", parties=["a", "b"]),
        derive(Seed, Purpose.PAIRWISE_MASK, source, context=b"c", parties=["a", "b"]),
        derive(Seed, Purpose.SELF_MASK, other, context=b"c", parties=["a", "b"]),
        derive(Seed, Purpose.SELF_MASK, source, context=b"d", parties=["a", "b"]),
        derive(Seed, Purpose.SELF_MASK, source, context=b"c", parties=["b", "a"]),
        derive(Seed, Purpose.SELF_MASK, source, context=b"c", parties=["ab"]),
        derive(Seed, Purpose.SELF_MASK, source, context=b"c", parties=["a", "b", ""]),
    ]
    assert len({secret.reveal() for secret in variants}) == len(variants)
    assert variants[0] != derive(OtherSeed, Purpose.SELF_MASK, source, context=b"c", parties=["a", "b"])


@given(st.binary(min_size=28, max_size=28), st.lists(st.integers(1, 3 * CHUNK_BYTES), max_size=4))
def test_a_keystream_does_not_depend_on_how_it_is_cut(seed: bytes, sizes: list[int]) -> None:
    whole, pieces = np.empty(sum(sizes), np.uint8), [np.empty(size, np.uint8) for size in sizes]
    Keystream(StreamSeed(seed)).fill(whole)
    stream = Keystream(StreamSeed(seed))
    for piece in pieces:
        stream.fill(piece)
    assert b"".join(piece.tobytes() for piece in pieces) == whole.tobytes()


@pytest.mark.parametrize("by_gcm", [False, True])
def test_the_keystream_is_that_of_counter_mode_from_block_2_on(
    monkeypatch: pytest.MonkeyPatch, by_gcm: bool
) -> None:
    monkeypatch.setattr(expand, "gcm_is_faster", lambda: by_gcm)
    size = 2 * CHUNK_BYTES + 21
    stream = np.empty(size, np.uint8)
    Keystream(StreamSeed(bytes(range(28)))).fill(stream)
    first = bytes(range(16, 28)) + (2).to_bytes(4, "big")
    counter_mode = Cipher(AES128(bytes(range(16))), CTR(first)).encryptor()
    assert stream.tobytes() == counter_mode.update(bytes(size))


@pytest.mark.parametrize("word", ["<u2", "<u4"])
@pytest.mark.parametrize("size", [1, 7, CHUNK_BYTES // 4 + 3, CHUNK_BYTES])
def test_masks_are_the_streams_words_and_come_off_again(word: str, size: int) -> None:
    rng = np.random.default_rng(size)
    words = rng.integers(0, np.iinfo(word).max, size, dtype=np.dtype(word).type, endpoint=True)
    counters = np.array([2**64 - 1, 5], "<u8")
    a, b = StreamSeed(bytes(28)), StreamSeed(bytes(27) + b"1")
    masked, masked_counters = words.copy(), counters.copy()
    apply_masks((masked, masked_counters), add=[a], subtract=[b])
    expected = [int(w) for w in words] + [int(c) for c in counters]
    for seed, sign in ((a, 1), (b, -1)):
        stream = np.empty(words.nbytes + counters.nbytes, np.uint8)
        Keystream(seed).fill(stream)
        mask = [int(w) for w in stream[: words.nbytes].view(word)]
        mask += [int(c) for c in np.frombuffer(stream[words.nbytes :].tobytes(), "<u8")]
        expected = [value + sign * m for value, m in zip(expected, mask, strict=True)]
    modulus = 2 ** (8 * words.itemsize)
    assert [int(w) for w in masked] == [value % modulus for value in expected[:size]]
    assert [int(c) for c in masked_counters] == [value % 2**64 for value in expected[size:]]
    apply_masks((masked, masked_counters), add=[b], subtract=[a])
    np.testing.assert_array_equal(masked, words)
    np.testing.assert_array_equal(masked_counters, counters)

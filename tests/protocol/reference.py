"""The key schedule and masking of CF-SecAgg/1 once more, slow and independent, in Python integers.

HKDF from ``hmac``, X25519 as RFC 7748 section 5 writes it, the keystream one AES block at a time. Shares
no code with the package.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import ECB

P = 2**255 - 19


def hkdf(key_material: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    pseudo_random_key = hmac.digest(salt or bytes(32), key_material, "sha256")
    block, output, count = b"", b"", 0
    while len(output) < length:
        count += 1
        block = hmac.digest(pseudo_random_key, block + info + bytes([count]), "sha256")
        output += block
    return output[:length]


def x25519(private: bytes, public: bytes) -> bytes:
    scalar = int.from_bytes(private, "little")
    scalar = (scalar & ~7 & ~(1 << 255)) | (1 << 254)
    u = int.from_bytes(public, "little") % 2**255
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in reversed(range(255)):
        bit = scalar >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, e = d * a, c * b, a * a - b * b
        x3, z3 = (da + cb) ** 2 % P, u * (da - cb) ** 2 % P
        x2, z2 = a * a * b * b % P, e * (a * a + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def public_of(private: bytes) -> bytes:
    return x25519(private, (9).to_bytes(32, "little"))


def digest(label: str, *parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "big") + p for p in (label.encode(), *parts))).digest()


def info(*parts: str) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part.encode() for part in parts)


def expand(seed: bytes, dimension: int, word_bytes: int, counters: int) -> list[int]:
    """The mask of a seed, key and nonce: ``dimension`` words, then ``counters`` of eight bytes."""
    assert len(seed) == 28
    key, nonce = seed[:16], seed[16:]
    aes = Cipher(AES128(key), ECB()).encryptor()
    size, stream, counter = dimension * word_bytes + 8 * counters, b"", 2
    while len(stream) < size:
        stream += aes.update(nonce + counter.to_bytes(4, "big"))
        counter += 1
    widths, mask, at = [word_bytes] * dimension + [8] * counters, [], 0
    for width in widths:
        mask.append(int.from_bytes(stream[at : at + width], "little"))
        at += width
    return mask


def pairwise_seed(context: bytes, silo: str, private: bytes, peer: str, peer_public: bytes) -> bytes:
    pair = sorted((silo, peer))
    return hkdf(
        x25519(private, peer_public),
        context,
        info("cachefl-secure/CF-SecAgg/1/pairwise-mask-stream", *pair),
        28,
    )


def self_mask_seed(context: bytes, silo: str, seed: bytes) -> bytes:
    return hkdf(seed, context, info("cachefl-secure/CF-SecAgg/1/self-mask-stream", silo), 28)


def masked_input(
    values: list[int],
    *,
    silo: str,
    mask_key: bytes,
    self_mask: bytes,
    mask_public_keys: Mapping[str, bytes],
    context: bytes,
    word_bytes: int,
    bits: int,
    counters: int,
) -> list[int]:
    """``values``: integers, then counters. Masks towards every other silo in ``mask_public_keys``.

    Masks are whole words; the sum keeps ``bits`` bits of each.
    """
    dimension = len(values) - counters
    moduli = [2**bits] * dimension + [2**64] * counters
    total = [
        v + m
        for v, m in zip(
            values,
            expand(self_mask_seed(context, silo, self_mask), dimension, word_bytes, counters),
            strict=True,
        )
    ]
    for peer, public in mask_public_keys.items():
        if peer != silo:
            seed = pairwise_seed(context, silo, mask_key, peer, public)
            sign = 1 if silo < peer else -1
            total = [
                t + sign * m
                for t, m in zip(total, expand(seed, dimension, word_bytes, counters), strict=True)
            ]
    return [value % modulus for value, modulus in zip(total, moduli, strict=True)]


def pack(words: list[int], bits: int) -> bytes:
    """Bit by bit: planes of 16, 16, 8, 4, 2, 1 bits, lowest bits first, each filled up to a whole byte."""
    content, lowest = b"", 0
    for width in (16, 16, 8, 4, 2, 1):
        if lowest + width <= bits:
            plane = bytearray((len(words) * width + 7) // 8)
            for i, word in enumerate(words):
                for bit in range(width):
                    at = i * width + bit
                    plane[at // 8] |= (word >> (lowest + bit) & 1) << at % 8
            content, lowest = content + bytes(plane), lowest + width
    assert lowest == bits
    return content


def unpack(content: bytes, dimension: int, bits: int) -> list[int]:
    """Bit by bit, as ``pack``."""
    words, at, lowest = [0] * dimension, 0, 0
    for width in (16, 16, 8, 4, 2, 1):
        if lowest + width <= bits:
            for place in range(dimension * width):
                bit = content[at + place // 8] >> place % 8 & 1
                words[place // width] |= bit << (lowest + place % width)
            at, lowest = at + (dimension * width + 7) // 8, lowest + width
    return words

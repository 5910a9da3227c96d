"""Shamir's t-of-n sharing (1979) of 32-byte secrets over GF(p), p = 2^31 - 1, in numpy.

A secret is 9 limbs of 30 bits, each the constant term of its own polynomial of degree t - 1 with
uniform coefficients; a share is the 9 values at the holder's x. All arithmetic on secrets is
multiply, add, shift and mask: no table and no branch depends on them (numpy promises no more, limit N6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.crypto.expand import Keystream
from cachefl_secure.crypto.secret import Secret

SECRET_BYTES = 32
LIMBS = 9
LIMB_BITS = 30
SHARE_BYTES = 4 * LIMBS
PRIME = (1 << 31) - 1

_P = np.uint64(PRIME)
_31 = np.uint64(31)

Field = NDArray[np.uint64]


class CoefficientSeed(Secret):
    """Expands to the coefficients of all polynomials of one ``split``."""

    __slots__ = ()


def split(
    secrets: Sequence[bytes], *, threshold: int, holders: Sequence[int], seed: CoefficientSeed
) -> list[list[bytes]]:
    """Shares of each 32-byte secret, as ``result[holder][secret]``, ``SHARE_BYTES`` each.

    Any ``threshold`` holders recover all secrets; fewer learn nothing, as long as the seed is fresh.
    ``holders`` are distinct x in [1, p).
    """
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"threshold {threshold} with {len(holders)} holders")
    _check_holders(holders)
    limbs = np.concatenate([_to_limbs(secret) for secret in secrets])
    coefficients = _uniform(seed, (threshold - 1) * limbs.size).reshape(threshold - 1, limbs.size)
    values = evaluate(np.vstack([limbs[None], coefficients]), holders)
    rows = values.astype("<u4").reshape(len(holders), len(secrets), LIMBS)
    return [[share.tobytes() for share in row] for row in rows]


def combine(shares: Mapping[int, Sequence[bytes]]) -> list[bytes]:
    """The secrets, from the shares of exactly ``threshold`` holders (x -> one share a secret, same order).

    Raises:
        ValueError: a share is no share, or together they encode no 32-byte secrets. Wrong shares may
            also give wrong secrets: check the result against a commitment.
    """
    holders = list(shares)
    _check_holders(holders)
    total = np.zeros((len(shares[holders[0]]), LIMBS), np.uint64)
    for holder, weight in zip(holders, _weights_at_zero(holders), strict=True):
        total = _reduce(total + _canonical(_reduce(_parse(shares[holder]) * weight)))
    return [_from_limbs(limbs) for limbs in _canonical(total)]


def evaluate(polynomials: Field, holders: Sequence[int]) -> Field:
    """Row per holder: the value of every polynomial (columns, lowest degree first) at the holder's x."""
    x = np.asarray(holders, np.uint64)[:, None]
    values = np.zeros((len(holders), polynomials.shape[1]), np.uint64)
    for coefficients in polynomials[::-1]:  # Horner
        values = _reduce(values * x + coefficients)
    return _canonical(values)


def is_share(share: bytes) -> bool:
    """Whether the bytes have a share's length and every limb lies in the field."""
    return len(share) == SHARE_BYTES and bool((np.frombuffer(share, "<u4") < PRIME).all())


def _reduce(values: Field) -> Field:
    """Below 2^63 to at most p, same residue: 2^31 = 1 modulo p, twice."""
    values = (values & _P) + (values >> _31)
    return (values & _P) + (values >> _31)


def _canonical(values: Field) -> Field:
    """[0, p] to [0, p)."""
    return values - _P * (values >= _P).astype(np.uint64)


def _uniform(seed: CoefficientSeed, count: int) -> Field:
    """Uniform field elements: 31 bits of keystream each, all ones rejected (probability 2^-31)."""
    stream, accepted = Keystream(seed), np.empty(0, np.uint32)
    while accepted.size < count:
        drawn = np.empty(4 * (count - accepted.size), np.uint8)
        stream.fill(drawn)
        candidates = drawn.view("<u4") & np.uint32(PRIME)
        accepted = np.concatenate([accepted, candidates[candidates < PRIME]])
    return accepted.astype(np.uint64)


def _weights_at_zero(holders: Sequence[int]) -> list[np.uint64]:
    """Lagrange weights for the value at 0. On public x only, so plain integers."""
    weights = []
    for x in holders:
        numerator = denominator = 1
        for other in holders:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        weights.append(np.uint64(numerator * pow(denominator, -1, PRIME) % PRIME))
    return weights


def _check_holders(holders: Sequence[int]) -> None:
    if not holders or len(set(holders)) != len(holders) or not all(0 < x < PRIME for x in holders):
        raise ValueError("holders must be distinct numbers in [1, p)")


def _parse(shares: Sequence[bytes]) -> Field:
    if not all(is_share(share) for share in shares):
        raise ValueError("not a share")
    return np.frombuffer(b"".join(shares), "<u4").reshape(len(shares), LIMBS).astype(np.uint64)


def _to_limbs(secret: bytes) -> Field:
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, got {len(secret)}")
    number = int.from_bytes(secret, "little")
    return np.array([(number >> (LIMB_BITS * i)) % (1 << LIMB_BITS) for i in range(LIMBS)], np.uint64)


def _from_limbs(limbs: Field) -> bytes:
    number = sum(int(limb) << (LIMB_BITS * i) for i, limb in enumerate(limbs))
    if number >> (8 * SECRET_BYTES) or any(int(limb) >> LIMB_BITS for limb in limbs):
        raise ValueError("shares do not encode a secret")
    return number.to_bytes(SECRET_BYTES, "little")

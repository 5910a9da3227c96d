"""Shamir's t-of-n sharing (1979) of 32-byte secrets over GF(p), p = 2^31 - 1, in numpy.

A secret is 9 limbs of 30 bits, each the constant term of its own polynomial of degree t - 1 with
uniform coefficients; a share is the 9 values at the holder's x. All arithmetic on secrets is
multiply, add, shift and mask: no table and no branch depends on them (numpy promises no more, limit N6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.crypto.expand import Keystream, StreamSeed

SECRET_BYTES = 32
LIMBS = 9
LIMB_BITS = 30
SHARE_BYTES = 4 * LIMBS
PRIME = (1 << 31) - 1
_X_LIMIT = 1 << 16  # every x is less, so that one fold a step is enough in ``evaluate``

_P = np.uint64(PRIME)
_31 = np.uint64(31)

Field = NDArray[np.uint64]


class CoefficientSeed(StreamSeed):
    """Expands to the coefficients of all polynomials of one ``split``."""

    __slots__ = ()


def split(
    secrets: Sequence[bytes], *, threshold: int, holders: Sequence[int], seed: CoefficientSeed
) -> list[list[bytes]]:
    """Shares of each 32-byte secret, as ``result[holder][secret]``, ``SHARE_BYTES`` each.

    Any ``threshold`` holders recover all secrets; fewer learn nothing, as long as the seed is fresh.
    ``holders`` are distinct x in [1, 2^16).
    """
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"threshold {threshold} with {len(holders)} holders")
    _check_holders(holders)
    limbs = np.concatenate([_to_limbs(secret) for secret in secrets])
    coefficients = _uniform(seed, (threshold - 1) * limbs.size).reshape(threshold - 1, limbs.size)
    values = evaluate(np.vstack([limbs[None], coefficients]), holders)
    raw, row_bytes = values.astype("<u4").tobytes(), len(secrets) * SHARE_BYTES
    return [
        [raw[at : at + SHARE_BYTES] for at in range(row, row + row_bytes, SHARE_BYTES)]
        for row in range(0, len(raw), row_bytes)
    ]


def combine(shares: Mapping[int, Sequence[bytes]]) -> list[bytes]:
    """The secrets, from the shares of exactly ``threshold`` holders (x -> one share a secret, same order).

    Raises:
        ValueError: a share is no share, or together they encode no 32-byte secrets. Wrong shares may
            also give wrong secrets: check the result against a commitment.
    """
    holders = list(shares)
    _check_holders(holders)
    rows = np.stack([_parse(shares[holder]) for holder in holders])
    weighted = _canonical(_reduce(rows * _weights_at_zero(holders)[:, None, None]))
    return [_from_limbs(limbs) for limbs in _canonical(_reduce(weighted.sum(axis=0)))]


def evaluate(polynomials: Field, holders: Sequence[int]) -> Field:
    """Row per holder: the value of every polynomial (columns, lowest degree first) at the holder's x, below 2^16."""
    x = np.asarray(holders, np.uint64)[:, None]
    values = np.zeros_like(x) + polynomials[-1]
    for coefficients in polynomials[-2::-1]:  # Horner: below 2^49, folded below 2^31 + 2^18
        values = _fold(values * x + coefficients)
    return _canonical(_fold(values))


def is_share(share: bytes) -> bool:
    """Whether the bytes have a share's length and every limb lies in the field."""
    return are_shares((share,))


def are_shares(shares: Sequence[bytes]) -> bool:
    """``is_share`` of each, at the price of one."""
    return all(len(share) == SHARE_BYTES for share in shares) and bool(
        (np.frombuffer(b"".join(shares), "<u4") < PRIME).all()
    )


def _reduce(values: Field) -> Field:
    """Below 2^63 to at most p, same residue."""
    return _fold(_fold(values))


def _fold(values: Field) -> Field:
    """Same residue, as 2^31 = 1 modulo p."""
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


def _weights_at_zero(holders: Sequence[int]) -> Field:
    """Lagrange weights for the value at 0: the product over all other x' of x' / (x' - x)."""
    x = np.asarray(holders, np.uint64)
    differences = _canonical(_reduce(x[None, :] + (_P - x)[:, None]))
    np.fill_diagonal(differences, x)  # x in the place of x - x: its numerator lacks x
    denominators = _products(differences).tolist()
    numerator, running = 1, [1]
    for holder, denominator in zip(holders, denominators, strict=True):
        numerator = numerator * holder % PRIME
        running.append(running[-1] * denominator % PRIME)
    inverse, weights = pow(running[-1], -1, PRIME), []  # one inversion for all (Montgomery)
    for denominator, before in zip(reversed(denominators), reversed(running[:-1]), strict=True):
        weights.append(numerator * inverse * before % PRIME)
        inverse = inverse * denominator % PRIME
    return np.array(weights[::-1], np.uint64)


def _products(rows: Field) -> Field:
    """Of each row, in halves."""
    while rows.shape[1] > 1:
        if rows.shape[1] % 2:
            rows = np.hstack([rows, np.ones((len(rows), 1), np.uint64)])
        rows = _canonical(_reduce(rows[:, ::2] * rows[:, 1::2]))
    return rows[:, 0]


def _check_holders(holders: Sequence[int]) -> None:
    if not holders or len(set(holders)) != len(holders) or not all(0 < x < _X_LIMIT for x in holders):
        raise ValueError("holders must be distinct numbers in [1, 2^16)")


def _parse(shares: Sequence[bytes]) -> Field:
    if not are_shares(shares):
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

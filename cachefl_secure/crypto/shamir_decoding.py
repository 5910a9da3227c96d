"""Shamir's sharing with wrong shares among the right ones: a Reed-Solomon word, decoded as Gao (2002) does.

In plain integers, not in constant time: what is decoded is about to be revealed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cachefl_secure.crypto.shamir import LIMBS, PRIME, combine

Polynomial = list[int]
"""Coefficients, lowest degree first, without trailing zeros."""


def decode(shares: Mapping[int, bytes], threshold: int) -> tuple[bytes, frozenset[int]] | None:
    """The secret that all shares but at most (m - t) // 2 of the m encode, and the holders x of the others.

    None if there is no such secret. Each limb is decoded by itself, so at most that many may be wrong in each.
    """
    holders = list(shares)
    limbs = [np.frombuffer(shares[x], "<u4").tolist() for x in holders]
    liars: set[int] = set()
    for limb in range(LIMBS):
        values = [row[limb] for row in limbs]
        polynomial = _decode_one(holders, values, threshold)
        if polynomial is None:
            return None
        liars |= {x for x, value in zip(holders, values, strict=True) if _value(polynomial, x) != value}
    honest = {x: [shares[x]] for x in holders if x not in liars}
    if len(honest) < threshold:
        return None
    try:
        (secret,) = combine(dict(list(honest.items())[:threshold]))
    except ValueError:
        return None
    return secret, frozenset(liars)


def _decode_one(xs: Sequence[int], ys: Sequence[int], threshold: int) -> Polynomial | None:
    """The polynomial of degree below ``threshold`` through all points but at most (m - t) // 2."""
    whole: Polynomial = [1]
    for x in xs:
        whole = _multiply(whole, [-x % PRIME, 1])
    remainder, next_remainder = whole, _interpolate(xs, ys, whole)
    locator: Polynomial = []
    next_locator: Polynomial = [1]
    # Extended Euclid, stopped half-way: the errors' locator divides the remainder.
    while 2 * (len(next_remainder) - 1) >= len(xs) + threshold:
        quotient, rest = _divide(remainder, next_remainder)
        remainder, next_remainder = next_remainder, rest
        locator, next_locator = next_locator, _subtract(locator, _multiply(quotient, next_locator))
    if not next_remainder:
        return []
    message, rest = _divide(next_remainder, next_locator)
    return message if not rest and len(message) <= threshold else None


def _interpolate(xs: Sequence[int], ys: Sequence[int], whole: Polynomial) -> Polynomial:
    total = [0] * len(xs)
    for x, y in zip(xs, ys, strict=True):
        others, _ = _divide(whole, [-x % PRIME, 1])
        scale = y * pow(_value(others, x), -1, PRIME) % PRIME
        total = [(a + scale * b) % PRIME for a, b in zip(total, others, strict=True)]
    return _trimmed(total)


def _value(polynomial: Polynomial, x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


def _multiply(left: Polynomial, right: Polynomial) -> Polynomial:
    if not left or not right:
        return []
    product = [0] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            product[i + j] += a * b
    return _trimmed([value % PRIME for value in product])


def _subtract(left: Polynomial, right: Polynomial) -> Polynomial:
    size = max(len(left), len(right))
    padded = (polynomial + [0] * (size - len(polynomial)) for polynomial in (left, right))
    return _trimmed([(a - b) % PRIME for a, b in zip(*padded, strict=True)])


def _divide(dividend: Polynomial, divisor: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Quotient and remainder."""
    rest, inverse = list(dividend), pow(divisor[-1], -1, PRIME)
    quotient = [0] * max(0, len(dividend) - len(divisor) + 1)
    for shift in reversed(range(len(quotient))):
        factor = quotient[shift] = rest[shift + len(divisor) - 1] * inverse % PRIME
        for i, coefficient in enumerate(divisor):
            rest[shift + i] = (rest[shift + i] - factor * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _trimmed(polynomial: Polynomial) -> Polynomial:
    while polynomial and polynomial[-1] == 0:
        polynomial.pop()
    return polynomial

"""Shares recover from any t holders; fewer are explained by every other secret as well."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachefl_secure.crypto.shamir import (
    LIMB_BITS,
    LIMBS,
    PRIME,
    SHARE_BYTES,
    CoefficientSeed,
    combine,
    evaluate,
    is_share,
    split,
)

SEED = CoefficientSeed(bytes(28))
secrets_ = st.one_of(
    st.binary(min_size=32, max_size=32), st.sampled_from([bytes(32), b"\xff" * 32, b"\x01" + bytes(31)])
)


def limbs_of(secret: bytes) -> list[int]:
    number = int.from_bytes(secret, "little")
    return [(number >> (LIMB_BITS * i)) % 2**LIMB_BITS for i in range(LIMBS)]


def values_of(share: bytes) -> list[int]:
    return [int.from_bytes(share[4 * i : 4 * i + 4], "little") for i in range(LIMBS)]


def interpolate(points: dict[int, int]) -> list[int]:
    """Coefficients, lowest first, of the polynomial through the points: Lagrange in plain integers."""
    total = [0] * len(points)
    for x, y in points.items():
        basis, denominator = [1], 1
        for other in points:
            if other != x:
                basis = [
                    (low * -other + high) % PRIME for low, high in zip([*basis, 0], [0, *basis], strict=True)
                ]
                denominator = denominator * (x - other) % PRIME
        factor = y * pow(denominator, -1, PRIME)
        total = [(t + factor * b) % PRIME for t, b in zip(total, basis, strict=True)]
    return total


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_threshold_of_holders_recovers_the_secrets(data: st.DataObject) -> None:
    holders = data.draw(st.lists(st.integers(1, 200), min_size=1, max_size=12, unique=True))
    threshold = data.draw(st.integers(1, len(holders)))
    secrets = data.draw(st.lists(secrets_, min_size=1, max_size=3))
    seed = CoefficientSeed(data.draw(st.binary(min_size=28, max_size=28)))
    shares = dict(zip(holders, split(secrets, threshold=threshold, holders=holders, seed=seed), strict=True))
    some = data.draw(st.permutations(holders))[:threshold]
    assert combine({x: shares[x] for x in some}) == secrets


@pytest.mark.claim("C1")
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_fewer_than_the_threshold_are_explained_by_any_other_secret(data: st.DataObject) -> None:
    """A witness: for every other secret there are coefficients that make the very same t - 1 shares.

    Exact. As the coefficients are uniform, all secrets are then equally likely given the shares.
    """
    threshold = data.draw(st.integers(2, 8))
    holders = list(range(1, threshold + 3))
    secret, other = data.draw(secrets_), data.draw(secrets_)
    shares = split([secret], threshold=threshold, holders=holders, seed=SEED)
    seen = data.draw(st.permutations(holders))[: threshold - 1]
    polynomials = []
    for limb in range(LIMBS):
        points = {0: limbs_of(other)[limb]} | {x: values_of(shares[x - 1][0])[limb] for x in seen}
        polynomials.append(interpolate(points))
    witness = evaluate(np.array(polynomials, np.uint64).T, seen)
    assert [row.astype("<u4").tobytes() for row in witness] == [shares[x - 1][0] for x in seen]
    assert [polynomial[0] for polynomial in polynomials] == limbs_of(other)


def test_shares_are_those_of_plain_integer_polynomials() -> None:
    secret, threshold, holders = b"\xff" * 32, 4, [1, 2, 3, 50, 128]
    shares = split([secret], threshold=threshold, holders=holders, seed=SEED)
    for limb in range(LIMBS):
        points = {x: values_of(row[0])[limb] for x, row in zip(holders, shares, strict=True)}
        polynomial = interpolate(points)
        assert polynomial[0] == limbs_of(secret)[limb]
        assert polynomial[threshold:] == [0] * (len(holders) - threshold)


@given(
    polynomials=st.lists(st.lists(st.integers(0, PRIME - 1), min_size=5, max_size=5), min_size=1, max_size=9),
    holders=st.lists(st.integers(1, 2**16 - 1), min_size=1, max_size=4),
)
@example(polynomials=[[PRIME - 1] * 5] * 9, holders=[2**16 - 1])
def test_values_are_those_of_plain_integers_for_every_x(
    polynomials: list[list[int]], holders: list[int]
) -> None:
    """``polynomials[j][i]``: coefficient j of polynomial i."""
    found = evaluate(np.array(polynomials, np.uint64), holders)
    for x, row in zip(holders, found.tolist(), strict=True):
        assert row == [
            sum(c * x**j for j, c in enumerate(column)) % PRIME for column in zip(*polynomials, strict=True)
        ]


def test_coefficients_are_uniform_over_the_field() -> None:
    threshold, many = 2, 4000
    shares = split([bytes(32)] * many, threshold=threshold, holders=[1, 2], seed=SEED)
    slopes = np.frombuffer(b"".join(shares[0]), "<u4").astype(np.float64) / PRIME  # secret 0: value at 1
    assert slopes.max() < 1
    counts = np.histogram(slopes, bins=64, range=(0, 1))[0]
    expected = slopes.size / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 63 + 5 * np.sqrt(2 * 63)


def test_a_draw_outside_the_field_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """31 one bits come once in 2^31 draws; taken as a coefficient they would count 0 twice."""

    class FirstOnes:
        def __init__(self, seed: CoefficientSeed) -> None:
            self.draws = iter([0xFFFFFFFF, 0x7FFFFFFF, *range(1, 20)])

        def fill(self, out: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
            out[:] = np.array([next(self.draws) for _ in range(out.size // 4)], "<u4").view(np.uint8)

    monkeypatch.setattr("cachefl_secure.crypto.shamir.Keystream", FirstOnes)
    ((share,),) = split([bytes(32)], threshold=2, holders=[1, 2], seed=SEED)[:1]
    assert values_of(share) == list(range(1, LIMBS + 1))


def test_the_same_seed_gives_the_same_shares_and_another_seed_others() -> None:
    def deal(seed: bytes) -> list[list[bytes]]:
        return split([bytes(32)], threshold=2, holders=[1, 2], seed=CoefficientSeed(seed))

    assert deal(bytes(28)) == deal(bytes(28))
    assert deal(bytes(28)) != deal(bytes(27) + b"1")


@pytest.mark.parametrize(
    "share", [b"", bytes(SHARE_BYTES - 1), bytes(SHARE_BYTES + 1), b"\xff" * SHARE_BYTES]
)
def test_what_is_no_share_is_refused(share: bytes) -> None:
    assert not is_share(share)
    with pytest.raises(ValueError, match="not a share"):
        combine({1: [share]})


@pytest.mark.parametrize("limb", [PRIME - 1, 2**30])
def test_shares_that_encode_no_secret_are_refused(limb: int) -> None:
    share = limb.to_bytes(4, "little") * LIMBS
    assert is_share(share)
    with pytest.raises(ValueError, match="do not encode"):
        combine({1: [share]})


@pytest.mark.parametrize(
    ("threshold", "holders"), [(0, [1]), (3, [1, 2]), (1, [0]), (2, [1, 1]), (1, [2**16])]
)
def test_impossible_sharings_are_refused(threshold: int, holders: list[int]) -> None:
    with pytest.raises(ValueError, match="holders"):
        split([bytes(32)], threshold=threshold, holders=holders, seed=SEED)

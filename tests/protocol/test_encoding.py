"""Encoding: bounded, unbiased, exact to sum; decoding gives back what was summed or refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cachefl_secure.crypto.expand import Keystream
from cachefl_secure.errors import LocalProtocolError, PeerError
from cachefl_secure.protocol.encoding import Encoding, IntegerEncoding, RoundingSeed, decode_sum, encode
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate, MaskedUpdate
from cachefl_secure.updates import IntegerUpdate, PrivateUpdate, ScaledUpdate
from tests.protocol.rounds import (
    a_plan,
    distributed_plan,
    fixed,
    integers,
    parameters_for,
    privacy_plan,
)

SEED = RoundingSeed(fixed("rounding", 28))


def parameters(dimension: int, *, noise_multiplier: float = 4.0, n: int = 5) -> RoundParameters:
    plan = a_plan(privacy=privacy_plan(noise_multiplier=noise_multiplier))
    return replace(RoundParameters.derive(plan, n, n), dimension=dimension)


def encode_values(
    values: NDArray[np.float64], chosen: RoundParameters, seed: RoundingSeed = SEED
) -> EncodedUpdate:
    return encode(PrivateUpdate(values), chosen, seed)


def test_every_entry_is_the_floor_or_the_ceiling_of_its_scaled_value() -> None:
    chosen = parameters(50_001)
    values = np.random.default_rng(0).uniform(-chosen.clamp, chosen.clamp, chosen.dimension)
    got = np.array(integers(encode_values(values, chosen))[:-1])
    scaled = values / chosen.grid_step
    assert ((got == np.floor(scaled)) | (got == np.ceil(scaled))).all()


def slow_rounding(values: NDArray[np.float64], chosen: RoundParameters, seed: RoundingSeed) -> list[int]:
    """One entry at a time, in exact fractions: the 2^16-fold, cut towards 0, plus a coin of 16 bits, over 2^16, floored."""
    coins = np.empty(2 * values.size, np.uint8)
    Keystream(seed).fill(coins)
    scale = Fraction(2.0**16 / chosen.grid_step)
    rounded = []
    for i, value in enumerate(values):
        clamped = min(max(Fraction(float(value)), Fraction(-chosen.clamp)), Fraction(chosen.clamp))
        coin = int.from_bytes(coins[2 * i : 2 * i + 2].tobytes(), "little")
        rounded.append((int(Fraction(float(clamped * scale))) + coin) // 2**16)
    return rounded


@pytest.mark.parametrize("noise_multiplier", [0.0, 4.0, 0.02])
def test_rounding_is_that_of_a_slow_reference(noise_multiplier: float) -> None:
    """In 64-bit and in 32-bit integers, over the whole range and beyond, across chunks, at the ends."""
    chosen = parameters(40_000, noise_multiplier=noise_multiplier)
    values = np.random.default_rng(1).normal(0, chosen.clamp / 2, chosen.dimension)
    values[:6] = np.array([1, -1, 2, -2, 0.5, -0.5]) * chosen.clamp
    assert integers(encode_values(values, chosen))[:-1] == slow_rounding(values, chosen, SEED)


@pytest.mark.parametrize("bound", [2**15 - 1, 2**15])
def test_the_largest_entries_round_right_where_32_bits_give_way_to_64(bound: int) -> None:
    chosen = parameters_for(3, dimension=6, bound=bound)
    values = np.array([bound, -bound, bound - 2**-16, 2**-17 - bound, bound - 0.5, 0.5 - bound])
    for tag in range(50):
        seed = RoundingSeed(fixed(str(tag), 28))
        assert integers(encode_values(values, chosen, seed))[:-1] == slow_rounding(values, chosen, seed)


def test_no_coin_is_left_out_so_the_mean_is_exact_to_the_bits_that_are_cut() -> None:
    """Over all 2^16 coins, the mean of an entry is its value with 16 fraction bits."""
    every_coin = np.arange(2**16)
    for value in (0.3, -0.3, 2.0**-16, -(2.0**-16), 2.0**-17, -7.999999, 3.0, -3.0):
        fixed_point = int(Fraction(value) * 2**16)
        mean = Fraction(int(((fixed_point + every_coin) >> 16).sum()), 2**16)
        assert mean == Fraction(fixed_point, 2**16)
        assert abs(mean - Fraction(value)) < Fraction(1, 2**16)
        assert abs(mean) <= abs(Fraction(value))


def test_rounding_is_unbiased() -> None:
    """Five standard errors, plus the 2^-16 of a step that is documented."""
    count = 400_000
    chosen = parameters(count)
    for fraction in (0.0, 0.01, 0.25, 0.5, 0.9):
        for whole in (-3, 0, 2):
            values = np.full(count, (whole + fraction) * chosen.grid_step)
            mean = np.mean(integers(encode_values(values, chosen))[:-1])
            spread = math.sqrt(fraction * (1 - fraction) / count)
            assert abs(mean - float(values[0] / chosen.grid_step)) <= 5 * spread + 2**-16


@given(
    st.integers(1, 70_000),
    st.lists(st.integers(0, 70_000), max_size=4),
    st.sampled_from([0.0, 4.0]),
)
@settings(max_examples=25, deadline=None)
def test_cut_anywhere_an_encoding_has_the_same_entries(
    dimension: int, cuts: list[int], noise_multiplier: float
) -> None:
    chosen = parameters(dimension, noise_multiplier=noise_multiplier)
    values = np.random.default_rng(dimension).normal(0, chosen.clamp / 2, dimension)
    update, whole = PrivateUpdate(values), encode_values(values, chosen)
    encoding, clamped = Encoding(update, chosen, SEED), 0
    ends = sorted({0, dimension, *(cut for cut in cuts if cut < dimension)})
    for start, stop in pairwise(ends):
        out = np.empty(stop - start, chosen.word)
        clamped += encoding.entries_from(start)(out)
        assert np.array_equal(out, whole.words[start:stop])
    assert clamped == whole.counters[0] > 0 or dimension < 20


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_whole_numbers_of_one_length_are_encoded_as_their_values_are(
    kind: type[np.signedinteger[Any]],
) -> None:
    chosen = parameters(70_001, noise_multiplier=4.0)
    whole = np.random.default_rng(3).normal(0, 1e6, chosen.dimension).astype(kind)
    update = ScaledUpdate(whole, -chosen.clamp / 2.5e6)
    expected, encoding = encode_values(update.values, chosen), Encoding(update, chosen, SEED)
    words = np.empty(chosen.dimension, chosen.word)
    assert encoding.entries_from(0)(words) == expected.counters[0] > 0
    assert np.array_equal(words, expected.words)
    half = np.empty(1000, chosen.word)
    encoding.entries_from(69_000)(half)
    assert np.array_equal(half, expected.words[69_000:70_000])


@pytest.mark.parametrize(
    ("integers", "step"),
    [(np.zeros(3), 1.0), (np.zeros((1, 3), np.int32), 1.0), (np.zeros(3, np.int32), np.nan)],
)
def test_a_scaled_update_is_a_vector_of_integers_and_a_finite_length(
    integers: NDArray[Any], step: float
) -> None:
    with pytest.raises(ValueError, match=r"vector of int32|must be finite"):
        ScaledUpdate(integers, step)
    assert repr(ScaledUpdate(np.arange(3, dtype=np.int32), 1.0)) == "ScaledUpdate(<3 integers>)"


def test_an_exact_multiple_of_the_grid_step_is_not_rounded() -> None:
    chosen = parameters_for(3, dimension=201)
    values = np.arange(-100, 101).astype(np.float64)
    assert integers(encode_values(values, chosen))[:-1] == list(range(-100, 101))


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_no_finite_update_leaves_the_bound_and_clamped_entries_are_counted(
    entries: list[float], tag: int
) -> None:
    for noise_multiplier in (0.0, 4.0):
        chosen = parameters(len(entries), noise_multiplier=noise_multiplier)
        encoded = encode_values(np.array(entries), chosen, RoundingSeed(fixed(str(tag), 28)))
        *words, saturated = integers(encoded)
        assert max(abs(word) for word in words) <= chosen.entry_bound
        assert saturated == sum(abs(entry) > chosen.clamp for entry in entries)


@pytest.mark.claim("C2")
@pytest.mark.parametrize("noise_multiplier", [0.0, 4.0, 0.02])
@pytest.mark.parametrize("n", [3, 5, 100, 128])
def test_a_sum_of_the_largest_entries_does_not_wrap(n: int, noise_multiplier: float) -> None:
    chosen = parameters(2, noise_multiplier=noise_multiplier, n=n)
    top = chosen.entry_bound
    words = np.array([top, -top]).astype(chosen.word)
    total, counters = np.zeros(2, chosen.word), np.array([2 * n], "<u8")
    for _ in range(n):
        total += words
    decoded = decode_sum(AggregateSum(total, counters), chosen)
    np.testing.assert_array_equal(decoded.values, np.array([n * top, -n * top]) * chosen.grid_step)
    assert decoded.saturated == 2 * n


def test_the_decoded_sum_is_within_one_grid_step_a_silo_of_the_true_sum() -> None:
    chosen = parameters(10_000, n=7)
    rng = np.random.default_rng(3)
    updates = [rng.normal(0, chosen.clamp / 5, 10_000) for _ in range(7)]
    total, counters = np.zeros(10_000, chosen.word), np.zeros(1, "<u8")
    for i, update in enumerate(updates):
        encoded = encode_values(update, chosen, RoundingSeed(fixed(str(i), 28)))
        total += encoded.words
        counters += encoded.counters
    decoded = decode_sum(AggregateSum(total, counters), chosen)
    true = sum(np.clip(update, -chosen.clamp, chosen.clamp) for update in updates)
    assert np.abs(decoded.values - true).max() <= 7 * chosen.grid_step
    assert decoded.saturated == sum(int((np.abs(update) > chosen.clamp).sum()) for update in updates)


@pytest.mark.parametrize("beyond", [1, 1000])
def test_a_sum_outside_the_agreed_bound_is_refused(beyond: int) -> None:
    chosen = parameters_for(5, dimension=3)
    bound = 5 * chosen.entry_bound
    for value in (bound + beyond, -bound - beyond):
        words = np.array([0, value, 0]).astype(chosen.word)
        with pytest.raises(PeerError):
            decode_sum(AggregateSum(words, np.zeros(1, "<u8")), chosen)
    with pytest.raises(PeerError):
        decode_sum(AggregateSum(np.zeros(3, chosen.word), np.array([5 * 3 + 1], "<u8")), chosen)


def test_an_update_of_another_dimension_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        encode_values(np.zeros(4), parameters(5))


def test_vectors_are_read_only_and_print_sizes_only() -> None:
    encoded = encode_values(np.full(3, 0.012345), parameters(3))
    assert repr(encoded) == "EncodedUpdate(<3 words>, <1 counters>)"
    assert (
        repr(MaskedUpdate(np.zeros(2, np.uint8), np.zeros(1, "<u8")))
        == "MaskedUpdate(<2 bytes>, <1 counters>)"
    )
    for array in (encoded.words, encoded.counters):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def noisy_integers(n: int = 5) -> RoundParameters:
    return RoundParameters.derive(a_plan(privacy=distributed_plan()), n, n)


def an_integer_update(chosen: RoundParameters, rng_seed: int, *, entry: int | None = None) -> IntegerUpdate:
    rng = np.random.default_rng(rng_seed)
    values = rng.integers(-chosen.entry_bound, chosen.entry_bound, chosen.dimension)
    return IntegerUpdate((values if entry is None else np.full(chosen.dimension, entry)).astype(np.int32))


def sum_of(encodings: list[IntegerEncoding], chosen: RoundParameters) -> AggregateSum:
    """As the secure sum makes it: modulo 2^bits, lifted to the integer next to 0."""
    total = np.zeros(chosen.dimension, np.int64)
    for encoding in encodings:
        words = np.empty(chosen.dimension, chosen.word)
        assert encoding.entries_from(0)(words) == 0
        total += words
    half, whole = 1 << (chosen.vector_bits - 1), 1 << chosen.vector_bits
    lifted = (total + half) % whole - half
    return AggregateSum(
        lifted.astype(chosen.word.str.replace("u", "i")).view(chosen.word), np.zeros(1, "<u8")
    )


@pytest.mark.claim("C2")
def test_the_sum_of_integer_updates_decodes_exactly() -> None:
    chosen = noisy_integers()
    updates = [an_integer_update(chosen, seed) for seed in range(5)]
    decoded = decode_sum(sum_of([IntegerEncoding(u, chosen) for u in updates], chosen), chosen)
    exact = np.sum([u.integers.astype(np.int64) for u in updates], axis=0)
    assert np.array_equal(decoded.values, exact * chosen.grid_step)
    assert decoded.saturated == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_integers_with_all_noise_on_one_side_still_decode(sign: int) -> None:
    chosen = noisy_integers()
    each = sign * (chosen.sum_bound(5) // 5)
    encodings = [IntegerEncoding(an_integer_update(chosen, 0, entry=each), chosen)] * 5
    assert np.array_equal(
        decode_sum(sum_of(encodings, chosen), chosen).values,
        np.full(chosen.dimension, 5 * each * chosen.grid_step),
    )


@pytest.mark.claim("C19")
def test_a_sum_of_integers_beyond_bound_and_noise_is_refused() -> None:
    chosen = noisy_integers()
    beyond = np.full(chosen.dimension, chosen.sum_bound(5) + 1, "<i4").view(chosen.word)
    with pytest.raises(PeerError, match="outside the agreed bound"):
        decode_sum(AggregateSum(beyond, np.zeros(1, "<u8")), chosen)


@pytest.mark.claim("C19")
def test_nobody_counts_clamped_entries_of_integers() -> None:
    """Such a count would be of records, and exact: no noise is on it."""
    chosen = noisy_integers()
    assert IntegerEncoding(an_integer_update(chosen, 0), chosen).counters.tolist() == [0]
    with pytest.raises(PeerError, match="outside the agreed bound"):
        decode_sum(AggregateSum(np.zeros(chosen.dimension, chosen.word), np.ones(1, "<u8")), chosen)


def test_integers_of_another_dimension_or_for_other_parameters_are_refused() -> None:
    chosen = noisy_integers()
    with pytest.raises(LocalProtocolError, match="entries"):
        IntegerEncoding(IntegerUpdate(np.zeros(3, np.int32)), chosen)
    with pytest.raises(ValueError, match="other parameters"):
        IntegerEncoding(an_integer_update(chosen, 0), chosen).check(replace(chosen, minimum_survivors=5))


def test_integer_updates_do_not_print_their_values() -> None:
    chosen = noisy_integers()
    update = an_integer_update(chosen, 0, entry=77_777)
    assert "77777" not in f"{update!r} {IntegerEncoding(update, chosen)!r}"
    with pytest.raises(ValueError, match="int32"):
        IntegerUpdate(np.zeros(3, np.int64))

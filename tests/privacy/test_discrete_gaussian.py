"""The sampler's distribution is the discrete Gaussian: against exact probabilities, an exact slow sampler, and at every edge."""

from __future__ import annotations

import decimal
import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cachefl_secure.privacy import discrete_gaussian
from cachefl_secure.privacy.discrete_gaussian import LARGEST_SCALE, DiscreteGaussian, _exactly_kept, _table
from cachefl_secure.privacy.noise import RandomStream, RandomStreams, StreamKey

SCALES = [0.5, 0.7, 1.0, 3.3, 127.9, 128.1, 300.0, 5000.5, 131_072.0, 1e6, LARGEST_SCALE]


def stream(key: int = 1) -> RandomStream:
    return RandomStream(StreamKey(bytes([key]) * 32))


class Scripted(RandomStream):
    """Words as a test wants them, then the key stream's."""

    def __init__(self, *words: int) -> None:
        super().__init__(StreamKey(bytes(32)))
        self._script = list(words)
        self.taken = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        self.taken += count
        scripted = [self._script.pop(0) for _ in range(min(count, len(self._script)))]
        return np.concatenate([np.array(scripted, np.uint64), super().words(count - len(scripted))])


def probabilities(scale: float, reach: int) -> NDArray[np.float64]:
    """Of -reach .. reach, in high precision."""
    with decimal.localcontext(prec=50):
        weights = [
            (-decimal.Decimal(k * k) / (2 * decimal.Decimal(scale) ** 2)).exp() for k in range(reach + 1)
        ]
        total = weights[0] + 2 * sum(weights[1:])
        half = [float(weight / total) for weight in weights]
    return np.array([*reversed(half[1:]), *half])


@pytest.mark.claim("C7")
@pytest.mark.parametrize("scale", [0.5, 0.7, 1.0, 3.3, 20.0, 127.9, 128.1, 300.0])
def test_every_integer_comes_as_often_as_it_must(scale: float) -> None:
    """Chi-square over single integers (or runs of them that hold 25 draws), a million draws."""
    draws, reach = 1_000_000, math.ceil(7 * scale) + 3
    drawn = DiscreteGaussian(scale).sample(draws, stream())
    expected = draws * probabilities(scale, reach)
    counted = np.bincount(np.clip(drawn, -reach, reach) + reach, minlength=2 * reach + 1)
    bins = np.minimum(np.floor(np.cumsum(expected) / 25), draws // 25 - 1).astype(int)
    observed, due = (np.bincount(bins, weights=each) for each in (counted, expected))
    due, observed = due[due > 0], observed[due > 0]
    enough = due >= 5
    statistic = ((observed - due)[enough] ** 2 / due[enough]).sum()
    assert 1e-4 < stats.chi2.sf(statistic, enough.sum() - 1) < 1 - 1e-4


@pytest.mark.claim("C7")
@pytest.mark.parametrize("scale", [1000.0, 5000.5, 131_072.0, 1e6, LARGEST_SCALE])
def test_large_scales_are_gaussian_within_cells_and_across_their_edges(scale: float) -> None:
    drawn = DiscreteGaussian(scale).sample(1_000_000, stream(2)).astype(np.float64)
    spread = drawn + np.random.default_rng(0).uniform(-0.5, 0.5, drawn.size)
    assert stats.kstest(spread / scale, "norm").pvalue > 1e-3
    width = 1 << _table(scale).offset_bits
    offsets = np.floor(drawn % width * 64 / max(width, 64)).astype(int)
    # Position within a cell: all but uniform, with the slope that the density has; symmetric, so none on the whole.
    assert stats.chisquare(np.bincount(offsets)).pvalue > 1e-4
    for edge in (-width, 0, width):
        low, high = edge - width // 2, edge + width // 2
        due = drawn.size * float(np.diff(stats.norm.cdf(np.array([low - 0.5, high - 0.5]) / scale))[0])
        assert abs(int(((drawn >= low) & (drawn < high)).sum()) - due) < 5 * math.sqrt(due)


def slow_discrete_gaussian(variance: Fraction, rng: Random) -> int:
    """Algorithm 3 of Canonne, Kamath and Steinke (2020): integers and fractions only."""

    def bernoulli(p: Fraction) -> bool:
        return rng.randrange(p.denominator) < p.numerator

    def bernoulli_exp(gamma: Fraction) -> bool:
        while gamma > 1:
            if not bernoulli_exp(Fraction(1)):
                return False
            gamma -= 1
        k = 1
        while bernoulli(gamma / k):
            k += 1
        return k % 2 == 1

    def laplace(t: int) -> int:
        while True:
            u = rng.randrange(t)
            if not bernoulli_exp(Fraction(u, t)):
                continue
            v = 0
            while bernoulli_exp(Fraction(1)):
                v += 1
            magnitude = u + t * v
            negative = bernoulli(Fraction(1, 2))
            if not (negative and magnitude == 0):
                return -magnitude if negative else magnitude

    t = math.isqrt(math.floor(variance)) + 1
    while True:
        y = laplace(t)
        if bernoulli_exp((abs(y) - variance / t) ** 2 / (2 * variance)):
            return y


@pytest.mark.parametrize("scale", [1.0, 6.5, 200.0])
def test_it_agrees_with_the_exact_sampler_of_the_paper(scale: float) -> None:
    rng = Random(3)
    theirs = [slow_discrete_gaussian(Fraction(scale) ** 2, rng) for _ in range(8000)]
    ours = DiscreteGaussian(scale).sample(200_000, stream(3))
    edges = np.unique(np.quantile(ours, np.linspace(0, 1, 30)[1:-1]))
    table = [np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) for x in (theirs, ours)]
    assert stats.chi2_contingency(np.array(table) + 1).pvalue > 1e-3


@pytest.mark.claim("C7")
@pytest.mark.parametrize("scale", SCALES)
def test_the_table_is_the_distribution_of_the_cells_to_the_last_bit(scale: float) -> None:
    """Weights computed one by one, each with its own exponential, instead of one from the other."""
    table = _table(scale)
    with decimal.localcontext(prec=200):
        variance = 2 * decimal.Decimal(scale) ** 2
        chosen = range(0, len(table.start), max(1, len(table.start) // 40))
        each = {
            i: (-(decimal.Decimal(int(table.heaviest[i])) ** 2) / variance).exp()
            for i in range(len(table.start))
        }
        total = sum(each.values(), decimal.Decimal(0))
        for i in chosen:
            exact = sum((each[j] for j in range(i + 1)), decimal.Decimal(0)) / total
            assert abs(decimal.Decimal(table.exact[i]) / (1 << 544) - exact) < decimal.Decimal(10) ** -120
    assert table.exact[-1] == 1 << 544
    assert (
        np.abs(table.heaviest)
        == np.minimum(np.abs(table.start), np.abs(table.start + (1 << table.offset_bits) - 1))
    ).all()
    assert -table.start[0] >= 17 * scale


@pytest.mark.claim("C7")
@pytest.mark.parametrize("scale", SCALES)
def test_nobody_is_kept_at_once_whom_the_exact_test_would_refuse(scale: float) -> None:
    """The short cut's bound in every cell, against the least probability of the cell in 60 digits."""
    table, bits = _table(scale), 32 - _table(scale).offset_bits
    bucket = np.flatnonzero(table.guided_surely)
    first = np.searchsorted(table.top, bucket.astype(np.uint32) << np.uint32(16), side="left")
    last = np.searchsorted(
        table.top, (bucket.astype(np.uint32) << np.uint32(16)) + np.uint32(65535), side="right"
    )
    assert (first == last).all()  # one cell only, whatever the other 16 bits are
    assert (table.guided_start[bucket] == table.start[first]).all()
    for i in range(0, len(bucket), max(1, len(bucket) // 200)):
        k0, start = int(table.heaviest[first[i]]), int(table.start[first[i]])
        far = start if start < 0 else start + (1 << table.offset_bits) - 1
        with decimal.localcontext(prec=60):
            least = (-decimal.Decimal(far * far - k0 * k0) / (2 * decimal.Decimal(scale) ** 2)).exp()
            assert int(table.guided_surely[bucket[i]]) <= least * (1 << bits)


@pytest.mark.parametrize("scale", [1.0, 300.0, 131_072.0])
def test_bits_that_do_not_decide_a_cell_are_followed_by_more(scale: float) -> None:
    """32 bits equal to the table's: the cell's end is inside, and which side it is on follows from the next 512."""
    table, cell = _table(scale), len(_table(scale).start) // 2 + 1
    rest = table.exact[cell] & ((1 << 512) - 1)
    tie = int(table.top[cell]) << 32
    limbs = [(rest >> (64 * i)) & (2**64 - 1) for i in range(8)]
    below = [(rest - 1 >> (64 * i)) & (2**64 - 1) for i in range(8)]
    distribution = DiscreteGaussian(scale)
    assert distribution.sample(1, Scripted(tie, *below, 0))[0] == table.start[cell]
    assert distribution.sample(1, Scripted(tie, *limbs, 0))[0] == table.start[cell + 1]


@given(st.integers(1, 2**40), st.integers(-3, 3))
def test_a_chance_that_a_double_cannot_decide_is_decided_exactly(above: int, distance: int) -> None:
    scale, bits = 1e6, 85
    with decimal.localcontext(prec=200):
        keep = (-decimal.Decimal(above) / (2 * decimal.Decimal(scale) ** 2)).exp()
        drawn = int(keep * (1 << bits)) + distance
        low, high = drawn, drawn + 1
        if not 0 <= low < 1 << bits:
            return
        expected = True if high <= keep * (1 << bits) else False if low >= keep * (1 << bits) else None
    got = _exactly_kept(drawn, bits, above, scale, stream())
    assert got == expected or expected is None


def test_the_exact_decision_asks_for_more_bits_until_it_is_clear() -> None:
    above, scale, bits = 12_345, 1000.0, 85
    with decimal.localcontext(prec=300):
        keep = (-decimal.Decimal(above) / (2 * decimal.Decimal(scale) ** 2)).exp()
        whole = int(keep * (1 << (bits + 128)))
    drawn = whole >> 128
    first, second = (whole >> 64) & (2**64 - 1), whole & (2**64 - 1)
    assert _exactly_kept(drawn, bits, above, scale, Scripted(first, second - 1))
    assert not _exactly_kept(drawn, bits, above, scale, Scripted(first, second + 1))


@pytest.mark.parametrize("scale", [1.0, 1000.0, 1e6])
def test_every_unclear_draw_may_be_decided_exactly(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With doubles that are trusted with nothing: the same distribution, slowly."""
    monkeypatch.setattr(discrete_gaussian, "_DOUBLE_ERROR", 1.0)
    usual = DiscreteGaussian(scale).sample(4000, stream(5))
    assert abs(float(usual.std()) / scale - 1) < 0.05


def test_draws_are_symmetric_and_of_the_right_spread() -> None:
    for scale in SCALES[2:]:
        drawn = DiscreteGaussian(scale).sample(400_000, stream(6)).astype(np.float64) / scale
        assert abs(drawn.mean()) < 4.5 / math.sqrt(drawn.size)
        assert abs(drawn.std() - 1) < 4.5 / math.sqrt(2 * drawn.size) + 1e-3 / scale
        assert abs((drawn**3).mean()) < 4.5 * math.sqrt(15 / drawn.size)


def test_the_same_stream_gives_the_same_draws_and_adds_them() -> None:
    distribution = DiscreteGaussian(5000.5)
    drawn = distribution.sample(70_001, stream(7))
    values = np.full(70_001, 11, np.int32)
    distribution.add_to(values, stream(7))
    assert np.array_equal(values - 11, drawn)
    assert np.abs(drawn).max() <= distribution.largest <= 17.1 * 5000.5
    # whole chunks are the same whatever follows them
    assert np.array_equal(distribution.sample(32_768, stream(7)), drawn[:32_768])


def test_consecutive_draws_are_independent() -> None:
    drawn = DiscreteGaussian(300.0).sample(400_000, stream(8)).astype(np.float64)
    for lag in (1, 2, 32_768):
        assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 4.5 / math.sqrt(drawn.size - lag)


def test_no_draw_asks_for_more_than_a_word_and_a_little() -> None:
    counting = Scripted()
    DiscreteGaussian(131_072.0).sample(100_000, counting)
    assert 100_000 <= counting.taken < 120_000


@pytest.mark.parametrize("scale", [0.0, 0.49, -1.0, math.nan, math.inf, 2 * LARGEST_SCALE])
def test_other_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="a scale of"):
        DiscreteGaussian(scale)


def test_two_streams_of_the_system_give_other_draws() -> None:
    a, b = (DiscreteGaussian(1000.0).sample(1000, RandomStreams.from_system().noise) for _ in range(2))
    assert float((a == b).mean()) < 0.05

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from cachefl_secure.privacy import discrete_gaussian
from cachefl_secure.privacy.discrete_gaussian import (
    BLOCK,
    LARGEST_SCALE,
    TAIL_MASS,
    TAIL_SCALES,
    DiscreteGaussian,
    rho_bounds,
)
from cachefl_secure.privacy.noise import RandomStream, StreamKey

SCALES = [0.5, 0.7, 1.0, 3.3, 16.0, 64.0, 127.9, 128.0, 1000.0, 30_000.0, 131_072.0, 1e6, 2.0**22]
ALL_ONES = 2**64 - 1


def fixed(byte: int = 7) -> RandomStream:
    return RandomStream(StreamKey(bytes([byte]) * 32))


# --- slow and obvious -----------------------------------------------------------------------------------


class Coins:
    """Exact Bernoulli and uniform draws of Python integers from a stream."""

    def __init__(self, stream: RandomStream) -> None:
        self._stream = stream

    def below(self, end: int) -> int:
        words = -(-end.bit_length() // 64)
        while True:
            drawn = int.from_bytes(self._stream.words(words).astype("<u8").tobytes(), "little")
            drawn >>= 64 * words - end.bit_length()
            if drawn < end:
                return drawn

    def flip(self, p: Fraction) -> bool:
        return self.below(p.denominator) < p.numerator

    def flip_exp(self, gamma: Fraction) -> bool:
        """Heads with probability exp(-gamma). Canonne, Kamath, Steinke 2020, Algorithm 1."""
        if gamma > 1:
            return all(self.flip_exp(Fraction(1)) for _ in range(math.floor(gamma))) and self.flip_exp(
                gamma - math.floor(gamma)
            )
        k = 1
        while self.flip(gamma / k):
            k += 1
        return k % 2 == 1


def canonne_kamath_steinke(scale: float, count: int, coins: Coins) -> list[int]:
    """Algorithms 2 and 3: discrete Laplace of scale t, kept with probability exp(-(|y| - s^2 / t)^2 / (2 s^2))."""
    variance, t = Fraction(scale) ** 2, math.floor(scale) + 1
    drawn: list[int] = []
    while len(drawn) < count:
        u = coins.below(t)
        if not coins.flip_exp(Fraction(u, t)):
            continue
        v = 0
        while coins.flip_exp(Fraction(1)):
            v += 1
        magnitude, negative = u + t * v, coins.flip(Fraction(1, 2))
        if negative and magnitude == 0:
            continue
        if coins.flip_exp((magnitude - variance / t) ** 2 / (2 * variance)):
            drawn.append(-magnitude if negative else magnitude)
    return drawn


def exp_by_series(x: Fraction, bits: int = 400) -> Fraction:
    """exp(-x) for x >= 0, correct to 2^-(bits - 10) of itself: Taylor's series of x / 2^m, squared m times."""
    squarings = max(0, math.ceil(x).bit_length())
    small, one, work = x / 2**squarings, 0, bits + 2 * squarings + 300
    unit = 1 << work
    term, n = unit, 0
    while term:
        one += term if n % 2 == 0 else -term
        n += 1
        term = term * small.numerator // (small.denominator * n)
    for _ in range(squarings):
        one = one * one >> work
    return Fraction(one, unit)


def exact_rho(k: int, scale: float) -> Fraction:
    return exp_by_series(Fraction(k) ** 2 / (2 * Fraction(scale) ** 2))


# --- fit ------------------------------------------------------------------------------------------------


def probabilities(edges: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
    """P(edges[i] <= k < edges[i + 1]): summed, or the Gaussian integral where that is the same to 1e-9."""
    if scale <= 2000:
        half = math.ceil(TAIL_SCALES * scale)
        k = np.arange(-half, half + 1)
        below = np.concatenate([[0.0], np.cumsum(np.exp(-0.5 * (k / scale) ** 2))])
        below /= below[-1]
        return np.diff(below[np.clip(edges + half, 0, k.size)])
    # Sum over [a, b) = midpoint rule for the integral over [a - 1/2, b - 1/2]: error (1 / 24 s^2) relatively.
    return np.diff(special.ndtr((edges - 0.5) / scale))


def fit(drawn: NDArray[np.int64], edges: NDArray[np.int64], scale: float) -> float:
    """p of the chi-square test of counts in [edges[i], edges[i + 1]), the tails beyond included."""
    far = np.iinfo(np.int64).max // 2
    edges = np.concatenate([[-far], edges, [far]])
    expected = probabilities(edges, scale) * drawn.size
    assert expected.min() > 5
    observed = np.diff(np.searchsorted(np.sort(drawn), edges, side="left"))
    return float(stats.chisquare(observed, expected * (drawn.size / expected.sum())).pvalue)


@pytest.mark.claim("C7")
@pytest.mark.parametrize("scale", SCALES)
def test_draws_fit_the_discrete_gaussian(scale: float) -> None:
    drawn = DiscreteGaussian(scale).sample(2_000_000, fixed())
    reach = math.floor(3.9 * scale)
    step = max(1, reach // 200)
    edges = np.arange(-reach, reach + 1, step)
    assert 1e-3 < fit(drawn, edges, scale) < 1 - 1e-3


@pytest.mark.parametrize("scale", [1000.0, 30_000.0, 131_072.0])
def test_draws_fit_at_the_two_ends_of_cells_as_in_their_middle(scale: float) -> None:
    sampler = DiscreteGaussian(scale)
    width = sampler._cells.width
    assert width >= 8
    drawn = sampler.sample(2_000_000, fixed(9))
    near = drawn[np.abs(drawn) < 3 * scale]
    offsets = near % width  # every cell starts at a multiple of the width
    eighths = np.bincount(offsets * 8 // width, minlength=8)
    k = np.arange(-math.floor(3 * scale), math.floor(3 * scale) + 1)
    k = k[np.abs(k) < 3 * scale]
    expected = np.bincount((k % width) * 8 // width, weights=np.exp(-0.5 * (k / scale) ** 2), minlength=8)
    assert stats.chisquare(eighths, expected / expected.sum() * near.size).pvalue > 1e-3
    starts = sampler._cells.value[np.abs(sampler._cells.value) < 3 * scale]
    edges = np.sort(np.concatenate([starts[::16], starts[::16] + width // 2]))
    assert 1e-3 < fit(drawn, edges, scale) < 1 - 1e-3


@pytest.mark.parametrize("scale", [1.0, 16.0, 64.0, 1000.0, 131_072.0])
def test_draws_on_tested_slots_fit_what_the_sure_slots_leave(scale: float) -> None:
    # One draw in a hundred passes the comparison, so the test above would hardly see it fail.
    sampler, n = DiscreteGaussian(scale), 400_000
    cells = sampler._cells
    offsets = (fixed(3).words(n) % np.uint64(cells.width)).astype(np.int32)
    values, accepted = sampler._test(offsets, fixed(4))
    k = np.arange(-sampler.limit, sampler.limit)
    left = cells.density * np.exp(-0.5 * (k / scale) ** 2) - np.repeat(cells.sure, cells.width)
    assert left.min() > -1e-9
    share = np.concatenate([[0.0], np.cumsum(np.maximum(left, 0))])
    tested_slots = 2**16 - cells.sure_slots
    assert accepted.mean() == pytest.approx(share[-1] / cells.width / tested_slots, abs=4.5 / math.sqrt(n))
    bins = np.searchsorted(share / share[-1], np.linspace(0, 1, 200)[1:-1])
    bins = np.unique(bins)
    kept = np.searchsorted(bins, values[accepted] + sampler.limit, side="right")
    observed = np.bincount(kept, minlength=bins.size + 1)
    expected = np.diff(np.concatenate([[0], share[bins], share[-1:]])) / share[-1] * accepted.sum()
    keep = expected > 5
    assert observed[~keep].sum() < 40
    statistic = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
    assert 1e-3 < stats.chi2.sf(statistic, keep.sum() - 1) < 1 - 1e-3


@pytest.mark.parametrize("scale", [1.0, 16.0, 4096.0, 131_072.0, LARGEST_SCALE])
def test_mean_variance_and_symmetry(scale: float) -> None:
    n = 1_000_000
    drawn = DiscreteGaussian(scale).sample(n, fixed(5)).astype(np.float64)
    assert abs(drawn.mean()) < 4 * scale / math.sqrt(n)
    assert drawn.var() == pytest.approx(scale**2, rel=4 * math.sqrt(2 / n))
    assert abs((drawn > 0).sum() - (drawn < 0).sum()) < 4 * math.sqrt(n)
    assert stats.ks_2samp(drawn[: n // 2], -drawn[n // 2 :]).pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / math.sqrt(n)


@pytest.mark.parametrize("scale", [0.7, 2.5, 40.0])
def test_the_exact_sampler_of_canonne_kamath_and_steinke_draws_the_same_distribution(scale: float) -> None:
    slow = np.array(canonne_kamath_steinke(scale, 4000, Coins(fixed(11))))
    fast = DiscreteGaussian(scale).sample(40_000, fixed(12))
    edges = np.unique(np.round(np.linspace(-2.2, 2.2, 12) * scale)).astype(int)
    table = [
        np.bincount(np.searchsorted(edges, x, side="right"), minlength=edges.size + 1) for x in (slow, fast)
    ]
    assert stats.chi2_contingency(np.array(table)).pvalue > 1e-3


# --- exactness ------------------------------------------------------------------------------------------


@pytest.mark.claim("C7")
@pytest.mark.parametrize("scale", [*SCALES, math.pi, 12_345.678, LARGEST_SCALE])
def test_every_cell_has_its_density_between_its_sure_and_all_its_slots(scale: float) -> None:
    sampler = DiscreteGaussian(scale)
    cells = sampler._cells
    density, tested_slots = Fraction(cells.density), 2**16 - cells.sure_slots
    assert sum(cells.share) == 2**64
    assert min(cells.share) > 0
    starts = np.cumsum([0, *cells.share[:-1]], dtype=object)
    assert starts.tolist() == cells.tested_from.tolist()
    some = np.unique(np.linspace(0, cells.value.size - 1, 200).astype(int))
    for j in {*some.tolist(), cells.value.size // 2 - 1, cells.value.size // 2}:
        first = int(cells.value[j])
        last = first + cells.width - 1
        assert first // cells.width == j - cells.value.size // 2
        most = density * exact_rho(min(abs(first), abs(last)), scale)
        least = density * exact_rho(max(abs(first), abs(last)), scale)
        sure, tested = int(cells.sure[j]), Fraction(cells.share[j] * tested_slots, 2**64)
        assert sure <= least
        assert most <= sure + tested
        assert float(tested) == pytest.approx(float(cells.tested[j]), rel=1e-15)
    assert not cells.slot_value[cells.sure_slots :].any()
    counts = np.unique(cells.slot_value[: cells.sure_slots], return_counts=True)
    assert np.array_equal(counts[0], cells.value[cells.sure > 0])
    assert np.array_equal(counts[1], cells.sure[cells.sure > 0])


@pytest.mark.parametrize("scale", [0.5, 1.0, 1000.0, 2.0**22])
def test_less_than_the_stated_mass_is_cut_off(scale: float) -> None:
    sampler = DiscreteGaussian(scale)
    assert sampler.limit >= TAIL_SCALES * scale
    # ends of a geometric series from above, as in the module; the whole sum from below by its integral
    ratio = exp_by_series(Fraction(2 * sampler.limit + 1) / (2 * Fraction(scale) ** 2))
    tail = 2 * exact_rho(sampler.limit, scale) / (1 - ratio)
    assert float(tail) / (scale * math.sqrt(2 * math.pi)) < TAIL_MASS
    worst = 2 * math.exp(-144.5) * (1 + scale / 17) / (scale * math.sqrt(2 * math.pi))
    assert worst < TAIL_MASS


class Words(RandomStream):
    """FOR TESTS: a stream of given words, then of one word for ever."""

    def __init__(self, *words: int, then: int = 0) -> None:
        super().__init__()
        self._words, self._then, self.asked = list(words), then, 0

    def fill(self, words: NDArray[np.uint64]) -> None:
        self.asked += len(words)
        given, self._words = self._words[: len(words)], self._words[len(words) :]
        words[:] = np.array(given + [self._then] * (len(words) - len(given)), dtype=np.uint64)


@pytest.mark.parametrize("scale", [1.0, 1000.0, 2.0**22])
def test_every_slot_is_either_its_cells_or_tested(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, asked = DiscreteGaussian(scale), []
    cells = sampler._cells

    def accept_all(
        _: DiscreteGaussian, offsets: NDArray[np.int32], __: RandomStream
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        asked.append(offsets)
        return np.full(offsets.size, -77, np.int64), np.ones(offsets.size, np.bool_)

    monkeypatch.setattr(DiscreteGaussian, "_test", accept_all)
    slots = np.arange(2**16, dtype=np.uint64)
    low = fixed(6).words(2**16) & np.uint64(0xFFFF)
    halves = slots << np.uint64(16) | low
    drawn = sampler.sample(2**16, Words(*(halves[::2] | halves[1::2] << np.uint64(32)).tolist()))
    offsets = (low % np.uint64(cells.width)).astype(np.int64)
    sure = np.repeat(cells.value, cells.sure)
    assert np.array_equal(drawn[: sure.size], sure + offsets[: sure.size])
    assert (drawn[sure.size :] == -77).all()
    assert np.array_equal(np.concatenate(asked), offsets[sure.size :])


def threshold(sampler: DiscreteGaussian, cell: int, offset: int) -> Fraction:
    """The U below which a value on a tested slot is accepted."""
    cells = sampler._cells
    height = Fraction(cells.density) * exact_rho(int(cells.value[cell]) + offset, sampler.scale)
    tested = Fraction(cells.share[cell] * (2**16 - cells.sure_slots), 2**64)
    return (height - int(cells.sure[cell])) / tested


def decide(sampler: DiscreteGaussian, cell: int, offset: int, uniform: int, later: int) -> tuple[bool, int]:
    """Whether the sampler accepts, and how many words more than two it asked for."""
    stream = Words(int(sampler._cells.tested_from[cell]), uniform, then=later)
    values, accepted = sampler._test(np.array([offset], dtype=np.int32), stream)
    assert values[0] == sampler._cells.value[cell] + offset
    return bool(accepted[0]), stream.asked - 2


@settings(max_examples=300, deadline=None)
@given(
    scale=st.sampled_from(SCALES) | st.floats(0.5, 2.0**26),
    where=st.floats(-5.5, 5.5),
    place=st.floats(0, 1),
    away=st.integers(-(2**34), 2**34) | st.integers(-3, 3) | st.integers(-(2**60), 2**60),
)
def test_a_tested_draw_is_accepted_exactly_below_its_threshold(
    scale: float, where: float, place: float, away: int
) -> None:
    sampler = DiscreteGaussian(scale)
    cells = sampler._cells
    cell = min(max(cells.value.size // 2 + round(where * scale / cells.width), 0), cells.value.size - 1)
    offset = min(int(place * cells.width), cells.width - 1)
    exact = threshold(sampler, cell, offset)
    assert 0 <= exact <= 1
    uniform = min(max(math.floor(exact * 2**64) + away, 0), ALL_ONES)
    for later in (0, ALL_ONES):
        accepted, more = decide(sampler, cell, offset, uniform, later)
        if Fraction(uniform + 1, 2**64) <= exact:
            assert accepted
        elif Fraction(uniform, 2**64) >= exact:
            assert not accepted
        else:
            assert accepted == (later == 0)
            assert more >= 1


def test_a_tie_is_decided_by_as_many_bits_as_it_takes() -> None:
    sampler = DiscreteGaussian(1000.0)
    cell, offset = sampler._cells.value.size // 2 + 40, 3
    exact = threshold(sampler, cell, offset)
    words = [math.floor(exact * 2 ** (64 * (i + 1))) % 2**64 for i in range(4)]
    for difference, verdict in ((-1, True), (1, False)):
        stream = Words(
            int(sampler._cells.tested_from[cell]), *words[:3], words[3] + difference, then=ALL_ONES // 2
        )
        _, accepted = sampler._test(np.array([offset], dtype=np.int32), stream)
        assert bool(accepted[0]) is verdict
        assert stream.asked == 2 + 3


def test_draws_that_are_all_left_to_exact_arithmetic_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = DiscreteGaussian(1000.0)
    quick = sampler.sample(20_000, fixed())
    asked = 0
    exactly = DiscreteGaussian._is_below

    def counted(self: DiscreteGaussian, cell: int, value: int, uniform: int, stream: RandomStream) -> bool:
        nonlocal asked
        asked += 1
        return exactly(self, cell, value, uniform, stream)

    monkeypatch.setattr(discrete_gaussian, "_MARGIN", 2.0)
    monkeypatch.setattr(DiscreteGaussian, "_is_below", counted)
    assert np.array_equal(sampler.sample(20_000, fixed()), quick)
    assert asked > 200


def test_float_comparisons_keep_far_within_their_margin() -> None:
    rng = np.random.default_rng(1)
    for scale in (1.0, 777.7, 131_072.0, 2.0**22):
        half = math.floor(TAIL_SCALES * scale)
        for k in rng.integers(-half, half + 1, 50).tolist():
            quick = Fraction(float(discrete_gaussian._rho(np.array([k]), scale)[0]))
            assert abs(quick / exact_rho(k, scale) - 1) < Fraction(1, 2**43)


@pytest.mark.parametrize("digits", [20, 41, 100])
def test_bounds_on_rho_enclose_it(digits: int) -> None:
    rng = np.random.default_rng(2)
    for scale in (0.5, 0.7, 1000.0, 0.1 + 2.0**20):
        for k in (0, 1, *rng.integers(0, math.ceil(17 * scale), 20).tolist()):
            least, most = rho_bounds(k, scale, digits)
            exact = exact_rho(k, scale)
            assert least < exact < most
            assert most - least < exact * Fraction(3, 10 ** (digits - 3))


# --- use ------------------------------------------------------------------------------------------------


def test_the_same_stream_gives_the_same_draws_and_another_gives_others() -> None:
    sampler = DiscreteGaussian(1000.0)
    first = sampler.sample(5000, fixed())
    assert np.array_equal(first, DiscreteGaussian(1000.0).sample(5000, fixed()))
    assert (first == sampler.sample(5000, fixed(8))).mean() < 0.01


def test_requests_cut_at_whole_blocks_are_one_sequence() -> None:
    sampler, cut = DiscreteGaussian(300.0), fixed()
    whole = sampler.sample(2 * BLOCK + 1001, fixed())
    pieces = [sampler.sample(n, cut) for n in (BLOCK, 0, BLOCK, 1001)]
    assert np.array_equal(whole, np.concatenate(pieces))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 32_767, 32_769, BLOCK + 1])
def test_any_number_of_draws_and_every_integer_type(count: int) -> None:
    sampler = DiscreteGaussian(900.0)
    drawn = sampler.sample(count, fixed())
    assert drawn.dtype == np.int64
    assert drawn.shape == (count,)
    for kind in (np.int16, np.int32, np.int64):
        out = np.full(count, 77, dtype=kind)
        sampler.fill(out, fixed())
        assert np.array_equal(out, drawn)
    rng = np.random.default_rng(0)
    for name in ("i1", "u1", "u2", "i4", "u4", "i8", "u8"):
        before = rng.integers(0, 2**63, count).astype(name)
        values = before.copy()
        sampler.add_to(values, fixed())
        assert values.dtype == name
        bits = 8 * values.itemsize
        total = (before.astype(object) + drawn.astype(object)) % 2**bits
        assert np.array_equal(values.astype(object) % 2**bits, total)


def test_every_second_place_can_be_filled() -> None:
    sampler, out = DiscreteGaussian(50.0), np.zeros(2000, dtype=np.int64)
    sampler.fill(out[::2], fixed())
    assert np.array_equal(out[::2], sampler.sample(1000, fixed()))
    assert not out[1::2].any()


def test_no_draw_is_beyond_the_limit() -> None:
    for scale in (0.7, 1000.0, LARGEST_SCALE):
        sampler = DiscreteGaussian(scale)
        assert TAIL_SCALES * scale <= sampler.limit < TAIL_SCALES * scale + sampler._cells.width
        assert -sampler.limit <= int(sampler._cells.value.min())
        assert int(sampler._cells.value.max()) + sampler._cells.width <= sampler.limit < 2**31


@pytest.mark.parametrize("scale", [0.0, -1.0, 0.49, math.nan, math.inf, -math.inf, 2.0**26 + 1])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        DiscreteGaussian(scale)


def test_arrays_that_cannot_take_the_noise_are_refused() -> None:
    sampler = DiscreteGaussian(3000.0)
    for bad in (np.zeros(3), np.zeros((2, 2), dtype=np.int64), np.zeros(3, dtype=np.bool_)):
        with pytest.raises(ValueError, match="one-dimensional array of integers"):
            sampler.fill(bad, fixed())
        with pytest.raises(ValueError, match="one-dimensional array of integers"):
            sampler.add_to(bad, fixed())
    for narrow in (np.int16, np.uint32):
        with pytest.raises(ValueError, match="does not hold"):
            sampler.fill(np.zeros(3, dtype=narrow), fixed())


def test_tables_cannot_be_changed_and_are_not_printed() -> None:
    sampler = DiscreteGaussian(1000.0)
    with pytest.raises(ValueError, match="read-only"):
        sampler._cells.slot_value[0] = 1
    assert repr(sampler) == "DiscreteGaussian(1000.0)"


@pytest.mark.claim("C7")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_repeat_its_parents_draws() -> None:
    stream, sampler = RandomStream(), DiscreteGaussian(1e6)
    sampler.sample(100, stream)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, sampler.sample(8, stream).tobytes())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() != sampler.sample(8, stream).tobytes()


def test_the_sampler_does_not_load_torch() -> None:
    program = "import sys, cachefl_secure.privacy.discrete_gaussian; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

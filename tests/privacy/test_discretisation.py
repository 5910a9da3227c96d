from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from cachefl_secure.privacy.discrete_gaussian import TAIL_MASS, DiscreteGaussian
from cachefl_secure.privacy.discretisation import (
    ADDED_DELTA,
    LARGEST_EPSILON,
    SMALLEST_SHARE,
    discretisation_slack,
    gaussian_delta,
    log_ratio_bound,
)
from cachefl_secure.privacy.noise import RandomStream, StreamKey

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)
U, DU = NODES / 2, WEIGHTS / 2  # the uniform distribution on [-1/2, 1/2]


def fixed(byte: int) -> RandomStream:
    return RandomStream(StreamKey(bytes([byte]) * 32))


def t(variance: float) -> float:
    """Of decision 0023: how far a sum over the integers is from its integral, relatively."""
    return 2 * sum(math.exp(-2 * math.pi**2 * variance * m * m) for m in range(1, 20))


def grid(scale: float, reach: float = 17.0) -> NDArray[np.int64]:
    half = math.ceil(reach * scale)
    return np.arange(-half, half + 1)


def discrete(k: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
    """N_Z(0, scale^2) at k."""
    weights: NDArray[np.float64] = np.exp(-0.5 * (k / scale) ** 2)
    whole = float(np.exp(-0.5 * (grid(scale, 40) / scale) ** 2).sum())
    return weights / whole


def rounded(k: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
    """N(0, scale^2), rounded to the nearest integer, at k."""
    density: NDArray[np.float64] = np.exp(-0.5 * ((k[:, None] + U) / scale) ** 2) @ DU
    return density / (scale * math.sqrt(2 * math.pi))


def log_ratio(k: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
    """log of ``rounded`` over ``discrete``, also where both are tiny, and to 1e-16 where it is tiny."""
    c = k[:, None] * U / scale**2 - U**2 / (2 * scale**2)
    ratio: NDArray[np.float64] = np.log1p(t(scale**2)) + np.log1p(np.expm1(c) @ DU)
    return ratio


# --- every step of decisions 0023 and 0024 that has numbers ---------------------------------------------


@pytest.mark.parametrize("variance", [0.3, 1.0, 4.0])
def test_sums_of_a_shifted_gaussian_over_the_integers_are_its_integral_but_for_t(variance: float) -> None:
    k = np.arange(-100, 101)
    centred = np.exp(-(k**2) / (2 * variance)).sum()
    for shift in np.linspace(-0.5, 0.5, 21):
        total = np.exp(-((k - shift) ** 2) / (2 * variance)).sum()
        assert abs(total / math.sqrt(2 * math.pi * variance) - 1) <= t(variance) * (1 + 1e-9) + 1e-14
        assert total <= centred * (1 + 1e-14)


@pytest.mark.claim("C7")
@pytest.mark.parametrize(
    "scales", [(1.0, 1.0), (1.0, 1.1, 1.3), (1.2,) * 5, (1.0, 4.0), (1.6, 1.5, 2.5, 3.0)]
)
def test_a_sum_of_shares_is_one_draw_up_to_the_stated_ratio(scales: tuple[float, ...]) -> None:
    k = np.arange(-60, 61)
    total = discrete(k, scales[0])
    for scale in scales[1:]:
        total = np.convolve(total, discrete(k, scale))
    k = np.arange(-(total.size // 2), total.size // 2 + 1)
    one = discrete(k, math.sqrt(sum(scale**2 for scale in scales)))
    seen = one > 1e-12
    difference = np.abs(np.log(total[seen] / one[seen])).max()
    bound = 5 * (len(scales) - 1) * math.exp(-(math.pi**2) * min(scales) ** 2)
    assert difference <= bound + 1e-13
    if min(scales) == max(scales) == 1.0:
        assert difference > bound / 10  # the constants are about right


@pytest.mark.parametrize("scale", [1.0, 2.0, 10.0, 100.0, 1000.0])
def test_the_log_ratio_of_one_coordinate_is_between_its_bounds(scale: float) -> None:
    k = np.unique(np.round(np.linspace(0, 17 * scale, 400))).astype(np.int64)
    z, ratio = k / scale, log_ratio(k, scale)
    main, rest = (z**2 - 1) / (24 * scale**2), (z**2 - 1) ** 2 / (512 * scale**4)
    assert (ratio <= t(scale**2) + main + rest + 1e-15).all()
    assert (ratio >= main - z**4 / (960 * scale**4) - 1e-15).all()
    near = k[z < 5]
    assert np.allclose(
        log_ratio(near, scale), np.log(rounded(near, scale) / discrete(near, scale)), atol=1e-11
    )


@pytest.mark.parametrize("scale", [1.0, 3.0, 100.0])
@pytest.mark.parametrize("rate", [-30.0, -2.0, -0.1, 0.0, 0.05, 0.2, 0.35])
def test_moments_of_the_squares_are_a_chi_squares_up_to_the_stated_factors(scale: float, rate: float) -> None:
    k = grid(scale, 40)
    growth = np.exp(rate * (k / scale) ** 2)
    chi = (1 - 2 * rate) ** -0.5
    under_p = (discrete(k, scale) * growth).sum()
    exact = chi * (1 + t(scale**2 / (1 - 2 * rate))) / (1 + t(scale**2))
    if scale**2 / (1 - 2 * rate) > 0.2:  # below, t itself needs more than 20 terms, and the lemma needs 150
        assert under_p <= exact * (1 + 1e-12)
    if rate >= 0:
        under_q = (rounded(k, scale) * growth).sum()
        bound = chi * math.exp(rate / (4 * scale**2 * (1 - 2 * rate))) * (1 + t(scale**2))
        assert chi * (1 - 1e-12) <= under_q <= bound * (1 + 1e-12)


@pytest.mark.parametrize(("size", "x"), [(1, 1000.0), (1, 1.0), (1000, 100.0), (2**40, 1.0), (2**40, 1000.0)])
def test_chernoff_bounds_with_the_chosen_rates_give_e_to_the_minus_x(size: int, x: float) -> None:
    r, deviation = math.sqrt(x / size), math.sqrt(size * x)
    lower = -2 * r * deviation + size * (r - math.log1p(2 * r) / 2)
    rate = r / (1 + 2 * r)
    upper = -rate * (2 * deviation + 2 * x) + size * (-rate - math.log1p(-2 * rate) / 2)
    error = 1e-15 * size  # of float64, for the cancelling terms
    assert lower <= -x + error
    assert upper <= -x + error
    assert 100**2 / (1 + 2 * r) >= 150
    y = math.sqrt(2 * (x + math.log(2 * size)))
    assert y <= 46
    assert size * 2 * math.exp(-(y**2) / 2) <= math.exp(-x) * (1 + 1e-9)
    assert math.exp(y / 200) <= 2


def test_what_is_left_out_is_within_the_added_delta() -> None:
    draws = 2.0**60
    left_out = (1 + math.exp(LARGEST_EPSILON)) * (4 * math.exp(-100) + draws * TAIL_MASS)
    assert left_out < ADDED_DELTA
    share_log10 = math.log10(5 * draws) - (math.pi * SMALLEST_SHARE) ** 2 / math.log(10)
    assert share_log10 < -409
    # ... and what is left over of 1/500 - 1/512 in step 5 is more than that, for scales up to 2^40
    rest = (2 * (1 + math.log(2)) + 1) * 5 * (1 / 500 - 1 / 512)
    assert rest > 1e-3
    assert math.log10(1e-3) - 4 * math.log10(2**40) > share_log10
    assert math.exp(0.25) + 1 < 4


# --- the lemma and the corollary ------------------------------------------------------------------------


@pytest.mark.claim("C7")
@pytest.mark.parametrize(("size", "x"), [(1, 4.0), (30, 3.0), (1000, 2.0), (1000, 4.0)])
def test_the_two_tails_of_the_log_ratio_are_as_rare_as_stated(size: int, x: float) -> None:
    scale, draws = 100.0, 4000
    eta = log_ratio_bound(scale, size, x)
    table = log_ratio(np.arange(0, 1701), scale)
    k = DiscreteGaussian(scale).sample(draws * size, fixed(21))
    under_p = table[np.abs(k)].reshape(draws, size).sum(axis=1)
    k = np.rint(np.random.default_rng(22).normal(0.0, scale, draws * size)).astype(np.int64)
    under_q = table[np.abs(k)].reshape(draws, size).sum(axis=1)
    allowed = 4 * math.exp(-x)
    noise = 4 * math.sqrt(allowed / draws)
    assert (under_p < -eta).mean() <= allowed + noise
    assert (under_q > eta).mean() <= allowed + noise
    # of the right size: a third of eta is exceeded more often
    if size >= 30:
        assert (under_q > eta / 3).mean() > math.exp(-x)


def hockey_stick(p: NDArray[np.float64], q: NDArray[np.float64], epsilon: float) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


def gaussian_mechanism_delta(epsilon: float, shift: float) -> float:
    """Of N(shift, 1) against N(0, 1). Balle and Wang 2018."""
    return float(
        stats.norm.cdf(shift / 2 - epsilon / shift)
        - math.exp(epsilon) * stats.norm.cdf(-shift / 2 - epsilon / shift)
    )


@pytest.mark.claim("C7")
@pytest.mark.parametrize("shift", [1, 20, 100, 300])
@pytest.mark.parametrize("scale", [100.0, 137.3])
def test_one_step_of_one_dimension_costs_at_most_the_gaussian_and_the_slack(scale: float, shift: int) -> None:
    k = grid(scale, 12)
    here, there = discrete(k, scale), discrete(k - shift, scale)
    slack = discretisation_slack(scale, 1, 1)
    for epsilon in (0.001, 0.01, 0.1, 0.5, 1.0, 3.0, 8.0):
        gaussian = gaussian_mechanism_delta(epsilon, shift / scale)
        for p, q in ((here, there), (there, here)):
            assert hockey_stick(p, q, epsilon + slack) <= math.exp(slack / 2) * gaussian + ADDED_DELTA + 1e-14


def test_two_adaptive_steps_cost_at_most_the_gaussian_and_the_slack() -> None:
    # The second step's shift depends on the sign of what the first released. Its pair of neighbours is 60 or 80 apart.
    scale, first, second = 100.0, 50, (60, 80)
    k = grid(scale, 9)
    slack = discretisation_slack(scale, 1, 2)
    here = discrete(k, scale)
    there = discrete(k - first, scale)
    shifted = {shift: discrete(k - shift, scale) for shift in second}
    for epsilon in (0.2, 1.0, 3.0):
        delta = 0.0
        for one, other, after in zip(here, there, k, strict=True):
            next_there = shifted[second[int(after > 0)]]
            delta += float(np.maximum(one * here - math.exp(epsilon + slack) * other * next_there, 0).sum())
        shift = math.hypot(first, max(second)) / scale
        assert delta <= math.exp(slack / 2) * gaussian_mechanism_delta(epsilon, shift) + 1e-12


# --- use ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "dimension", "steps", "slack"),
    [
        (131_072 * 4.5, 819_200, 20, 1.9440e-8),
        (16_384.0, 2560, 20, 1.46698e-6),
        (2931.0, 819_200, 50, 1.2441e-3),
    ],
)
def test_slack_at_sizes_of_the_decision(scale: float, dimension: int, steps: int, slack: float) -> None:
    assert discretisation_slack(scale, dimension, steps) == pytest.approx(slack, rel=1e-4)
    size = dimension * steps
    leading = (math.sqrt(100 * size) + 100) / (6 * scale**2)
    assert leading < discretisation_slack(scale, dimension, steps) < 1.001 * leading


def test_slack_falls_with_the_scale_and_grows_with_the_number_of_draws() -> None:
    assert discretisation_slack(2000.0, 100, 3) < discretisation_slack(1000.0, 100, 3)
    assert discretisation_slack(1000.0, 100, 3) < discretisation_slack(1000.0, 100, 4)
    assert discretisation_slack(1000.0, 100, 4) == discretisation_slack(1000.0, 400, 1)
    # all steps at once are cheaper than step by step
    assert discretisation_slack(1000.0, 10_000, 25) < 25 * discretisation_slack(1000.0, 10_000, 1) / 4


def test_the_gaussian_keeps_almost_all_of_delta() -> None:
    assert gaussian_delta(1e-5, 0.001) > 0.999 * 1e-5
    assert gaussian_delta(1e-16, 0.001) > 0.999 * 1e-16
    for delta in (1e-5, 1e-16):
        left = gaussian_delta(delta, 0.01)
        assert left * math.exp(0.005) + ADDED_DELTA == pytest.approx(delta, rel=1e-12)
    for delta in (0.0, 1e-21, ADDED_DELTA, -1.0, 3.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            gaussian_delta(delta, 0.001)


@pytest.mark.parametrize(
    ("scale", "dimension", "steps"),
    [
        (99.0, 1, 1),
        (math.nan, 1, 1),
        (math.inf, 1, 1),
        (1000.0, 0, 1),
        (1000.0, 1, 0),
        (1e9, 2**40, 2),
        (100.0, 1_000_001, 1),  # sqrt(100 d) > s^2
    ],
)
def test_where_the_proof_does_not_reach_there_is_no_slack(scale: float, dimension: int, steps: int) -> None:
    with pytest.raises(ValueError, match=r"scale|dimension"):
        discretisation_slack(scale, dimension, steps)
    assert discretisation_slack(100.0, 1_000_000, 1) > 0


@pytest.mark.parametrize("x", [0.9, 1001.0, math.nan])
def test_a_bound_is_asked_for_at_a_probability_that_the_proof_covers(x: float) -> None:
    with pytest.raises(ValueError, match="x must be"):
        log_ratio_bound(1000.0, 10, x)


def test_the_slack_does_not_load_torch_or_numpy() -> None:
    program = "import sys, cachefl_secure.privacy.discretisation; sys.exit(bool({'torch', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

"""Each law against what its name promises, over many draws. Seeds are fixed; bounds are those of rare chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cachefl_secure.datasets.partition import draw_partition
from cachefl_secure.datasets.schemes import Kind, Scheme, deal, parse_scheme
from cachefl_secure.errors import ConfigError

SILOS = 8


def _shares(scheme: str, classes: int, of_each: int, rng_seed: int = 0) -> np.ndarray:
    """(silos, classes): the part of each class that each silo holds."""
    labels = np.repeat(np.arange(classes), of_each)
    return _counts(labels, scheme, rng_seed) / of_each


def _counts(labels: np.ndarray, scheme: str, rng_seed: int) -> np.ndarray:
    shards = deal(labels, parse_scheme(scheme), SILOS, np.random.default_rng(rng_seed))
    return np.array([np.bincount(labels[shard], minlength=labels.max() + 1) for shard in shards])


@pytest.mark.parametrize("concentration", [0.05, 0.3, 2.0])
def test_a_silos_share_of_a_class_follows_the_marginal_of_dirichlet(concentration: float) -> None:
    shares = _shares(f"dirichlet:{concentration}", classes=400, of_each=2000)
    for row in shares:  # one silo over classes: independent draws of Beta(A, (M - 1) A), rounded to 1/2000
        # Half a step of the rounding moves an atom into place: without it the test of a continuous law fails.
        smooth = row + (np.random.default_rng(0).random(len(row)) - 0.5) / 2000
        found = stats.kstest(smooth, _rounded_beta(concentration))
        assert found.pvalue > 1e-4
    variance = (1 / SILOS) * (1 - 1 / SILOS) / (SILOS * concentration + 1)
    assert shares.var() == pytest.approx(variance, rel=0.1)


def _rounded_beta(concentration: float) -> Callable[[np.ndarray], np.ndarray]:
    """Distribution function of Beta(A, (M - 1) A) after rounding to 1/2000, spread again over the step."""
    beta = stats.beta(concentration, (SILOS - 1) * concentration)
    edges = (np.arange(2002) - 0.5) / 2000
    below = beta.cdf(edges)
    return lambda x: np.interp(x, edges, below)


def test_dirichlet_leaves_small_silos_as_they_fall() -> None:
    """Conditioned on ten records a silo, as in published code, none of these draws would be so small."""
    labels = np.repeat(np.arange(3), 40)
    smallest = [
        min(len(held) for held in draw_partition(labels, "dirichlet:0.1", SILOS, seed).silos.values())
        for seed in range(50)
    ]
    assert sum(size < 10 for size in smallest) > 45
    assert 0 in smallest


def test_classes_are_drawn_apart_from_each_other() -> None:
    shares = _shares("dirichlet:0.3", classes=400, of_each=1000)
    correlation = np.corrcoef(shares[:, ::2].ravel(), shares[:, 1::2].ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(shares.size / 2)


@pytest.mark.parametrize("scheme", ["iid", "quantity:1"])
def test_labels_of_a_silo_are_a_random_sample_neither_skewed_nor_stratified(scheme: str) -> None:
    labels = np.repeat(np.arange(10), 400)
    statistic = freedom = 0.0
    for seed in range(40):
        counts = _counts(labels, scheme, seed)
        counts = counts[counts.sum(axis=1) > 50]  # the approximation by chi squared wants no tiny silos
        found = stats.chi2_contingency(counts)
        statistic, freedom = statistic + found.statistic, freedom + found.dof
    assert 1e-4 < stats.chi2.cdf(statistic, freedom) < 1 - 1e-4


def test_iid_sizes_differ_by_one_at_most() -> None:
    partition = draw_partition(np.zeros(603, int), "iid", SILOS, 0)
    assert sorted(map(len, partition.silos.values())) == [75] * 5 + [76] * 3


def test_sizes_follow_dirichlet_by_quantity() -> None:
    labels = np.zeros(8000, int)
    sizes = np.array([_counts(labels, "quantity:0.5", seed).ravel() for seed in range(400)])
    assert (sizes / 8000).var() == pytest.approx((1 / 8) * (7 / 8) / (8 * 0.5 + 1), rel=0.15)
    assert sizes.mean(axis=0) == pytest.approx(1000, rel=0.25)


@settings(deadline=None, max_examples=60)
@given(classes=st.integers(1, 40), silos=st.integers(1, 20), data=st.data())
def test_a_silo_holds_the_stated_number_of_classes_and_holders_are_spread(
    classes: int, silos: int, data: st.DataObject
) -> None:
    per_silo = data.draw(st.integers(-(-classes // silos), classes))
    labels = np.repeat(np.arange(classes) * 3, 20)  # labels with gaps: only classes that occur count
    partition = draw_partition(labels, f"pathological:{per_silo}", silos, 0)
    held = partition.counts(labels, classes * 3)[:, ::3]
    assert (np.count_nonzero(held, axis=1) == per_silo).all()
    holders = np.count_nonzero(held, axis=0)
    assert holders.max() - holders.min() <= 1
    for column in held.T:  # a class is cut evenly
        parts = column[column > 0]
        assert parts.max() - parts.min() <= 1


def test_silos_share_no_class_where_there_are_enough() -> None:
    held = _shares("pathological:5", classes=40, of_each=30) > 0
    assert (held.sum(axis=0) == 1).all()


def test_which_classes_meet_in_a_silo_is_drawn_and_not_a_pattern() -> None:
    pairs = {
        tuple(np.flatnonzero(row))
        for seed in range(30)
        for row in _shares("pathological:2", classes=8, of_each=30, rng_seed=seed) > 0
    }
    assert len(pairs) > 20  # of 28


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("iid", Scheme(Kind.iid)),
        ("by-column", Scheme(Kind.by_column)),
        ("dirichlet:0.1", Scheme(Kind.dirichlet, 0.1)),
        ("dirichlet:1", Scheme(Kind.dirichlet, 1.0)),
        ("pathological:2", Scheme(Kind.pathological, 2.0)),
        ("quantity:1e-3", Scheme(Kind.quantity, 0.001)),
    ],
)
def test_a_scheme_survives_its_text(text: str, scheme: Scheme) -> None:
    assert parse_scheme(text) == scheme
    assert parse_scheme(str(scheme)) == scheme


@given(st.floats(0, 1e6, exclude_min=True))
def test_any_concentration_survives_its_text(value: float) -> None:
    scheme = Scheme(Kind.dirichlet, value)
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize(
    "text",
    [
        *("", "IID", "iid:", "iid:1", "by-column:site", "other:1"),
        *("dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:nan", "dirichlet:inf"),
        *("pathological:1.5", "pathological:0", "quantity:x"),
    ],
)
def test_what_is_no_scheme_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_scheme(text)

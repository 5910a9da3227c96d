"""Right answers by alpha and beta: each a function of its record alone, exact sensitivity in whole numbers, exact noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import normalize

from cachefl_secure.cache.closed_form import HeadKind
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel, logits
from cachefl_secure.cache.released_sums import ReleasedSums
from cachefl_secure.grid_layout import GRID, MOST_PAIRS, UNIT, UNIT_BITS, best_of, entry_bound, step_of
from cachefl_secure.privacy import grid as grid_module
from cachefl_secure.privacy.accountants import epsilon_closed_form
from cachefl_secure.privacy.accounting import Cost, cost_of, epsilon_rdp
from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
from cachefl_secure.privacy.grid import check_grid, release_grid, right_answers
from cachefl_secure.privacy.mechanism import GridMechanism, View
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.statistics import integer_features
from cachefl_secure.protocol.encoding import integers_of, with_integers
from cachefl_secure.protocol.masking import Masks, MaskSeed, mask, sum_masked, unmask
from cachefl_secure.protocol.segments import Segment
from tests.privacy.examples import cache_of, grid, records_of
from tests.protocol.rounds import federation, fixed, parameters_for, random_updates

PAIRS = [(alpha, beta) for alpha in (1.0, 3.0, 10.0, 30.0) for beta in (1.0, 3.0, 9.0)]
KEY = b"grid"

pytestmark = pytest.mark.claim("C7")


def mechanism_for(pairs: int = len(PAIRS), expected_records: int = 60) -> GridMechanism:
    return grid(dimension=pairs, expected_records=expected_records)


def release(records: FeatureSet, key: bytes = KEY, **changes: int) -> NDArray[np.int64]:
    return release_grid(cache_of(), records, PAIRS, mechanism_for(**changes), RandomStreams.repeatable(key))


def squared(vector: NDArray[np.int64]) -> int:
    """In Python's integers."""
    return sum(int(x) ** 2 for x in vector)


def without(records: FeatureSet, position: int) -> FeatureSet:
    keep = [i for i in range(len(records)) if i != position]
    return FeatureSet(records.features[keep], records.labels[keep])


def next_to_a_border(model: CacheModel, pair: tuple[float, float], seed: int) -> torch.Tensor:
    """(2, C): two neighbours in float32, as far as bisection comes, that ``logits`` puts into different classes."""
    chosen = replace(model, alpha=pair[0], beta=pair[1])
    features = records_of(40, dim=model.feature_dim, seed=seed).features
    answers = logits(chosen, features).argmax(dim=1)
    low, high = features[0], features[int((answers != answers[0]).nonzero()[0])]
    for _ in range(40):
        middle = normalize(low + high, dim=0)
        same = int(logits(chosen, middle[None]).argmax()) == int(answers[0])
        low, high = (middle, high) if same else (low, middle)
    return torch.stack([low, high])


@pytest.fixture(params=[1, 2], ids="threads={}".format)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


# --- what one record changes


def slow_answers(
    model: CacheModel, records: FeatureSet, pairs: list[tuple[float, float]]
) -> list[list[bool]]:
    """One record, one class, one key at a time, in Python's numbers."""

    def whole(rows: torch.Tensor) -> list[list[int]]:
        made: list[list[int]] = integer_features(rows, 12).tolist()
        return made

    def product(one: list[int], other: list[int]) -> int:
        return sum(x * y for x, y in zip(one, other, strict=True))

    keys, text, labels = whole(model.cache_keys), whole(model.text_classifier), model.key_labels.tolist()
    right = []
    for row, label in zip(whole(records.features), records.labels.tolist(), strict=True):
        answers = []
        for alpha, beta in pairs:
            scores = []
            for number, text_row in enumerate(text):
                affinities = [
                    product(row, key) >> 8 for key, of in zip(keys, labels, strict=True) if of == number
                ]
                sums = sum(round(math.exp(-beta * (1.0 - each / 2**16)) * 2.0**30) for each in affinities)
                scores.append(product(row, text_row) * (model.logit_scale / 2**24) + sums * (alpha / 2.0**30))
            answers.append(any(row) and scores.index(max(scores)) == label)
        right.append(answers)
    return right


def test_right_answers_are_those_of_a_loop_in_whole_numbers() -> None:
    model, records = cache_of(), records_of(40)
    assert right_answers(model, records, PAIRS).tolist() == slow_answers(model, records, PAIRS)


def test_right_answers_are_those_of_the_cache_model_but_next_to_a_border() -> None:
    model, records = cache_of(dim=64), records_of(1500, dim=64)
    found = right_answers(model, records, PAIRS)
    for index, (alpha, beta) in enumerate(PAIRS):
        scores = logits(replace(model, alpha=alpha, beta=beta), records.features)
        first, second = scores.topk(2, dim=1).values.T
        clear = (first - second > 2e-3 * (first.abs() + 1)).numpy()
        same = found[:, index] == (scores.argmax(dim=1) == records.labels).numpy()
        assert same[clear].all()
        assert clear.mean() > 0.95
    assert 0.1 < found.mean() < 0.9
    assert len({tuple(column) for column in found.T.tolist()}) > 8


@pytest.mark.usefixtures("_threads")
def test_one_more_record_at_any_place_changes_the_counts_by_its_own_and_at_most_by_the_unit() -> None:
    """Bit for bit; some of the records are as near to a border of two classes as float32 can say."""
    model, mechanism = cache_of(), mechanism_for()
    borders = torch.cat([next_to_a_border(model, pair, seed) for seed, pair in enumerate(PAIRS)])
    others = records_of(35)
    records = FeatureSet(
        torch.cat([others.features, borders]), torch.cat([others.labels, torch.arange(len(borders)) % 5])
    )
    alone = [
        right_answers(model, FeatureSet(records.features[i : i + 1], records.labels[i : i + 1]), PAIRS)[0]
        for i in range(len(records))
    ]
    everything = release(records)
    for position in range(len(records)):
        difference = everything - release(without(records, position))
        assert np.array_equal(difference, alone[position] * mechanism.step)
        assert squared(difference) <= mechanism.unit**2
    assert sum(map(sum, alone)) > 0


@pytest.mark.usefixtures("_threads")
def test_where_a_record_stands_changes_nothing_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another order, and in blocks of other sizes."""
    model = cache_of()
    records = FeatureSet(
        torch.cat([next_to_a_border(model, PAIRS[4], seed) for seed in range(30)]), torch.arange(60) % 5
    )
    expected = right_answers(model, records, PAIRS)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    shuffled = right_answers(model, FeatureSet(records.features[order], records.labels[order]), PAIRS)
    assert np.array_equal(shuffled, expected[order.numpy()])
    for entries in (1, 7 * 16):
        monkeypatch.setattr("cachefl_secure.privacy.grid._ENTRIES_AT_ONCE", entries)
        assert np.array_equal(right_answers(model, records, PAIRS), expected)


@given(st.integers(1, MOST_PAIRS), st.integers(7, 24))
def test_a_record_that_every_pair_is_right_about_is_no_longer_than_the_unit(pairs: int, bits: int) -> None:
    unit = 1 << bits
    step = step_of(pairs, unit)
    assert pairs * step * step <= unit * unit < pairs * (step + 1) ** 2
    made = grid(dimension=pairs, unit_bits=bits)
    assert (made.step, made.unit) == (step, unit)


def test_a_record_that_all_pairs_are_right_about_comes_as_near_to_the_unit_as_whole_numbers_allow() -> None:
    model = cache_of()
    certain = FeatureSet(model.text_classifier[:1], torch.zeros(1, dtype=torch.int64))
    pairs = [(0.001 * number, 1.0) for number in range(1, MOST_PAIRS + 1)]
    for number in (2, 3, 7, MOST_PAIRS):
        mechanism = mechanism_for(number)
        alone, nothing = (
            release_grid(model, records, pairs[:number], mechanism, RandomStreams.repeatable(KEY))
            for records in (certain, without(certain, 0))
        )
        assert 0.98 * UNIT**2 < squared(alone - nothing) <= UNIT**2


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 0.0])
def test_a_feature_that_is_none_counts_as_absent(broken: float) -> None:
    poisoned = records_of(9)
    poisoned.features[4] = broken
    assert np.array_equal(release(poisoned), release(without(poisoned, 4)))


def test_counts_far_beyond_the_declared_records_are_clamped_and_move_no_two_of_them_apart() -> None:
    one, most = FeatureSet(cache_of().text_classifier[:1], torch.zeros(1, dtype=torch.int64)), 16 * 60
    same = FeatureSet(one.features.repeat(most + 30, 1), one.labels.repeat(most + 30))
    noise, mechanism = release(records_of(0)), mechanism_for()
    for fewer in (59, most - 1, most, most + 29):
        before, after = (release(FeatureSet(same.features[:n], same.labels[:n])) for n in (fewer, fewer + 1))
        assert squared(after - before) <= mechanism.unit**2
        assert bool((after - before).any()) == (fewer < most)
    assert int((release(same) - noise).max()) == most * mechanism.step


# --- noise, and what it costs


def test_without_records_a_release_is_noise_of_the_mechanisms_scale() -> None:
    mechanism = mechanism_for(256)
    pairs = [(1.0 + number, 2.0) for number in range(256)]
    values = release_grid(cache_of(), records_of(0), pairs, mechanism, RandomStreams.repeatable(KEY))
    drawn = np.zeros(values.size, np.int32)
    DiscreteGaussian(mechanism.noise_scale).add_to(drawn, RandomStreams.repeatable(KEY).noise)
    assert np.array_equal(values, drawn)
    assert float(values.std()) == pytest.approx(mechanism.noise_scale, rel=0.15)


@pytest.mark.parametrize("noise_multiplier", [2e-3, 1.0, 3.7, 1024.0])
def test_no_draw_of_noise_passes_the_bound_that_parties_agree_on(noise_multiplier: float) -> None:
    mechanism = replace(mechanism_for(), noise_multiplier=noise_multiplier)
    limit = DiscreteGaussian(mechanism.noise_scale).limit
    assert 16 * 60 * mechanism.step + limit <= entry_bound(len(PAIRS), 60, noise_multiplier)


def test_two_releases_differ() -> None:
    first, second = (release_grid(cache_of(), records_of(9), PAIRS, mechanism_for()) for _ in "ab")
    assert not np.array_equal(first, second)


@pytest.mark.claim("C8")
def test_a_release_costs_one_gaussian_step_in_each_view() -> None:
    mechanism = grid(noise_multiplier=2.0, honest_survivors=4)
    found = cost_of([(mechanism, 1)], 1e-5)
    for view, noise in ((View.LOCAL, 2.0), (View.AGGREGATE, 4.0)):
        accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-4)
        accountant.compose(dp_accounting.GaussianDpEvent(noise))
        assert found.of(view) == pytest.approx(accountant.get_epsilon(0.999e-5), rel=1e-3)
        assert found.of(view) == pytest.approx(epsilon_closed_form(noise, 1, 0.999e-5), rel=1e-3)
        assert found.of(view) < epsilon_rdp([(mechanism, 1)], 1e-5, view)
        (step,) = [mechanism.event(view).event]
        assert step == dp_accounting.GaussianDpEvent(noise)
        assert mechanism.event(view).count == 1
    assert cost_of([(mechanism, 0)], 1e-5) == Cost(0.0, 0.0)


# --- what comes of it


@pytest.mark.parametrize("seed", range(4))
def test_with_next_to_no_noise_the_pair_that_wins_is_right_most_often(seed: int) -> None:
    model, records = cache_of(dim=64, seed=seed), records_of(400, dim=64, seed=seed + 10)
    quiet = grid(dimension=len(PAIRS), expected_records=400, noise_multiplier=100 / UNIT)
    released = release_grid(model, records, PAIRS, quiet, RandomStreams.repeatable(KEY))
    counts = right_answers(model, records, PAIRS).sum(axis=0)
    assert np.array_equal(np.rint(released / quiet.step), counts)
    top = np.flatnonzero(counts == counts.max())
    assert best_of(released.tolist()) in top
    assert best_of(counts.tolist()) == top[0] == int(np.argmax(counts))


def test_of_equal_counts_the_first_wins_and_negative_ones_count_as_they_are() -> None:
    assert best_of([3, 7, 7, 5]) == 1
    assert best_of([-9, -4, -4]) == 1
    assert best_of([0, 0]) == 0


def test_silos_counts_come_out_of_masks_exactly() -> None:
    """Five silos: a segment as wide as its bound says, masked, summed, unmasked, decoded."""
    silos, mechanism = 5, mechanism_for()
    bound = entry_bound(len(PAIRS), 60, mechanism.noise_multiplier)
    segment = Segment.of(GRID, len(PAIRS), bound, silos)
    assert segment.bits <= 32
    fed = federation(replace(parameters_for(silos, dimension=3, colluders=1), segments=(segment,)))
    data = [records_of(20 + 4 * i, seed=i) for i in range(silos)]
    releases = [release(records, str(i).encode()) for i, records in enumerate(data)]
    updates, seeds = random_updates(fed), {silo: MaskSeed(fixed(silo, 28)) for silo in fed.silos}
    masked = [
        mask(
            with_integers(updates[silo], {GRID: counts}, fed.parameters), Masks([seeds[silo]]), fed.parameters
        )
        for silo, counts in zip(fed.silos, releases, strict=True)
    ]
    total = unmask(sum_masked(masked, fed.parameters), Masks(list(seeds.values())), fed.parameters)
    sums = integers_of(total, GRID, fed.parameters)
    assert np.array_equal(sums, np.sum(releases, axis=0))
    exact = sum(right_answers(cache_of(), records, PAIRS).sum(axis=0) for records in data)
    away = (sums / mechanism.step - exact) / (mechanism.noise_scale * silos**0.5 / mechanism.step)
    assert np.abs(away).max() < 4.5


# --- what does not fit


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="classes"):
        release(FeatureSet(records_of(3).features, torch.full((3,), 5)))
    with pytest.raises(ValueError, match="pairs"):
        check_grid(cache_of(), PAIRS[1:], mechanism_for())
    sums = ReleasedSums(
        torch.zeros(5, 16, dtype=torch.int64),
        torch.zeros(136, dtype=torch.int64),
        unit=1 << 18,
        noise_std=1.0,
        head=HeadKind("gda"),
        regulariser=0.1,
        gamma=8.0,
    )
    released = replace(cache_of(), sums=sums)
    with pytest.raises(ValueError, match="of keys alone"):
        check_grid(released, PAIRS, mechanism_for())
    monkeypatch.setattr(grid_module, "_MOST_KEYS", cache_of().number_of_keys - 1)
    with pytest.raises(ValueError, match="of keys alone"):
        check_grid(cache_of(), PAIRS, mechanism_for())
    with pytest.raises(ValueError, match="unit"):
        grid(dimension=200, unit_bits=3)
    with pytest.raises(ValueError, match="fit"):
        step_of(MOST_PAIRS, 8)
    assert mechanism_for().unit_bits == UNIT_BITS

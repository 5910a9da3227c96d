"""Class sums and Gram matrix: exact sensitivity in whole numbers, exact noise, and back to real numbers over a secure sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cachefl_secure.cache.class_statistics import ClassStatistics
from cachefl_secure.cache.closed_form import HeadKind
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.released_sums import ReleasedSums
from cachefl_secure.privacy import statistics
from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
from cachefl_secure.privacy.mechanism import StatisticsMechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.statistics import integer_features, release_statistics
from cachefl_secure.protocol.encoding import integers_of, with_integers
from cachefl_secure.protocol.masking import Masks, MaskSeed, mask, sum_masked, unmask
from cachefl_secure.protocol.segments import Segment
from cachefl_secure.statistics_layout import CLASS_SUMS, GRAM, entries, entry_bound
from tests.privacy.examples import records_of
from tests.protocol.rounds import federation, fixed, parameters_for, random_updates

CLASSES, DIM, EXPECTED = 5, 16, 40
KEY = b"statistics"

pytestmark = pytest.mark.claim("C7")


def mechanism_for(
    classes: int = CLASSES, dim: int = DIM, feature_bits: int = 9, expected_records: int = EXPECTED
) -> StatisticsMechanism:
    return StatisticsMechanism(
        noise_multiplier=4.0,
        honest_survivors=4,
        feature_bits=feature_bits,
        dimension=sum(entries(classes, dim).values()),
        expected_records=expected_records,
    )


def release(records: FeatureSet, key: bytes = KEY) -> dict[str, NDArray[np.int64]]:
    return release_statistics(records, CLASSES, mechanism_for(), RandomStreams.repeatable(key))


def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(DiscreteGaussian):
        def add_to(self, values: NDArray[np.int32], stream: object) -> None:
            """Nothing is added."""

    monkeypatch.setattr(statistics, "DiscreteGaussian", Silent)


def decoded_sums(sums: dict[str, NDArray[np.int64]], mechanism: StatisticsMechanism) -> ClassStatistics:
    class_sums = torch.from_numpy(sums[CLASS_SUMS].reshape(CLASSES, DIM))
    released = ReleasedSums(
        class_sums, torch.from_numpy(sums[GRAM]), mechanism.unit, 0.0, HeadKind.RIDGE, 1.0, 1.0
    )
    return released.statistics


def squared(vector: NDArray[np.int64]) -> int:
    """In Python's integers."""
    return sum(int(x) ** 2 for x in vector)


@given(
    st.integers(1, 6),
    st.integers(1, 300),
    st.integers(7, 12),
    st.integers(0, 2**31),
    st.sampled_from(["normal", "flat", "peaked", "one entry"]),
    st.integers(-5, 30),
)
def test_no_integer_feature_is_longer_than_2_to_the_feature_bits(
    count: int, dim: int, bits: int, seed: int, kind: str, scale: int
) -> None:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    if kind == "flat":
        rows = torch.ones_like(rows)
    elif kind == "peaked":
        rows = rows**9
    elif kind == "one entry":
        rows[:, 1:] = 0.0
    whole = integer_features(rows * 10.0**scale, bits)
    assert all(squared(row) <= 4**bits for row in whole)
    longest = max(squared(row) for row in whole) ** 0.5
    assert longest > 0.9 * 2**bits or float(rows.norm(dim=1).max()) * 10.0**scale < 2e-6  # next to no length


def test_as_little_is_cut_off_as_it_takes() -> None:
    rows = records_of(400, dim=64).features
    for bits in (7, 12):
        whole = integer_features(rows, bits)
        scaled = 2.0**bits * rows.double().numpy() / rows.double().norm(dim=1, keepdim=True).numpy()
        nearest = np.rint(scaled)
        cut = nearest != whole
        assert cut.any()
        assert np.abs(whole[cut]).max() < np.abs(nearest[cut]).max()
        assert np.abs(whole - scaled).max() < 1.0
        for row, taken in zip(whole, cut, strict=True):
            position = int(taken.argmax())
            if taken[position]:  # one fewer would not have been enough
                assert squared(row) + 2 * int(np.abs(row[taken]).max()) + 1 > 4**bits


@pytest.mark.parametrize("dim", [13, 16, 512])
def test_a_records_integers_are_the_same_alone_and_among_others_however_they_lie_in_memory(
    monkeypatch: pytest.MonkeyPatch, dim: int
) -> None:
    """Another order of additions shows in one of a million integers, so also what is added up is looked at."""
    norm, lie_row_by_row = np.linalg.norm, list[bool]()

    def watched(given: NDArray[np.float64], **how: Any) -> Any:
        lie_row_by_row.append(given.flags.c_contiguous)
        return norm(given, **how)

    monkeypatch.setattr(np.linalg, "norm", watched)
    rows = 1e3 * records_of(300, dim=dim).features
    alone = np.concatenate([integer_features(row[None], 12) for row in rows])
    for layout in (rows, rows.T.contiguous().T, rows.repeat(1, 2)[:, :dim]):
        assert np.array_equal(integer_features(layout, 12), alone)
        assert np.array_equal(integer_features(layout[1::2], 12), alone[1::2])
    assert all(lie_row_by_row)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 0.0])
def test_a_feature_that_is_none_counts_as_absent(broken: float) -> None:
    poisoned = records_of(9)
    poisoned.features[4] = broken
    keep = [i for i in range(9) if i != 4]
    rest = FeatureSet(poisoned.features[keep], poisoned.labels[keep])
    for name, values in release(poisoned).items():
        assert np.array_equal(values, release(rest)[name])


@pytest.mark.parametrize("count", [0, 1, 7, 38, 39])
def test_one_more_record_changes_each_vector_by_its_own_integers_and_at_most_by_the_unit(count: int) -> None:
    mechanism = mechanism_for()
    before, after = release(records_of(count)), release(records_of(count + 1))
    record = records_of(count + 1)
    (v,) = integer_features(record.features[count:], mechanism.feature_bits).tolist()
    class_sums = np.zeros((CLASSES, DIM), np.int64)
    class_sums[int(record.labels[count])] = [x << mechanism.feature_bits for x in v]
    triangle = [v[i] * v[j] for i in range(DIM) for j in range(i, DIM)]
    for name, own in ((CLASS_SUMS, class_sums.reshape(-1)), (GRAM, np.array(triangle))):
        difference = after[name] - before[name]
        assert np.array_equal(difference, own)
        assert 0 < squared(difference) <= mechanism.unit**2


def test_records_beyond_the_declared_number_are_clamped_and_move_no_two_sums_apart() -> None:
    same = FeatureSet(records_of(1).features.repeat(60, 1), records_of(1).labels.repeat(60))
    fewer = FeatureSet(same.features[:59], same.labels[:59])
    noise, mechanism = release(records_of(0)), mechanism_for()
    for name, values in release(same).items():
        assert squared(values - release(fewer)[name]) <= mechanism.unit**2
        assert int(np.abs(values - noise[name]).max()) <= EXPECTED * mechanism.unit


def test_without_records_a_release_is_noise_of_the_mechanisms_scale() -> None:
    stream, sampler = RandomStreams.repeatable(KEY).noise, DiscreteGaussian(mechanism_for().noise_scale)
    for values in release(records_of(0)).values():
        drawn = np.zeros(values.size, np.int32)
        sampler.add_to(drawn, stream)
        assert np.array_equal(values, drawn)
        assert float(values.std()) == pytest.approx(mechanism_for().noise_scale, rel=0.3)


@pytest.mark.parametrize("noise_multiplier", [5e-4, 0.013, 1.0, 3.7, 255.9])
def test_no_draw_of_noise_passes_the_bound_that_parties_agree_on(noise_multiplier: float) -> None:
    mechanism = replace(mechanism_for(), noise_multiplier=noise_multiplier)
    limit = DiscreteGaussian(mechanism.noise_scale).limit
    assert EXPECTED * mechanism.unit + limit <= entry_bound(mechanism.unit, EXPECTED, noise_multiplier)


def test_two_releases_differ() -> None:
    first, second = (release_statistics(records_of(9), CLASSES, mechanism_for()) for _ in "ab")
    assert float((first[GRAM] == second[GRAM]).mean()) < 0.05


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="classes"):
        release(FeatureSet(records_of(3).features, torch.full((3,), CLASSES)))
    with pytest.raises(ValueError, match="entries"):
        release(records_of(3, dim=8))


def test_silos_sums_come_out_of_masks_exactly_and_become_real_again() -> None:
    """Five silos: segments as wide as bounds say, masked, summed, unmasked, decoded."""
    silos, mechanism = 5, mechanism_for()
    bound = entry_bound(mechanism.unit, EXPECTED, mechanism.noise_multiplier)
    lengths = entries(CLASSES, DIM)
    segments = tuple(Segment.of(name, length, bound, silos) for name, length in lengths.items())
    fed = federation(replace(parameters_for(silos, dimension=3, colluders=1), segments=segments))
    data = [records_of(20 + 4 * i, seed=i) for i in range(silos)]
    releases = [release(records, str(i).encode()) for i, records in enumerate(data)]
    updates = random_updates(fed)
    seeds = {silo: MaskSeed(fixed(silo, 28)) for silo in fed.silos}
    masked = [
        mask(with_integers(updates[silo], vectors, fed.parameters), Masks([seeds[silo]]), fed.parameters)
        for silo, vectors in zip(fed.silos, releases, strict=True)
    ]
    total = unmask(sum_masked(masked, fed.parameters), Masks(list(seeds.values())), fed.parameters)
    sums = {name: integers_of(total, name, fed.parameters) for name in lengths}
    for name, values in sums.items():
        assert np.array_equal(values, sum(each[name] for each in releases))
    decoded = decoded_sums(sums, mechanism)
    assert np.array_equal(decoded.gram, decoded.gram.T)
    features = torch.cat([each.features for each in data]).double().numpy()
    noise_std = mechanism.noise_multiplier * silos**0.5  # in features
    away = (decoded.gram - features.T @ features)[np.triu_indices(DIM)] / noise_std
    assert np.abs(away).max() < 4.5
    assert 0.7 < away.std() < 1.3


@pytest.mark.parametrize("bits", [9, 12])
def test_ridge_from_sums_without_noise_is_ridge_on_all_records(
    monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """To 1e-5 of the ridge of the same rounded features; to rounding of that of the given ones."""
    without_noise(monkeypatch)
    mechanism = mechanism_for(feature_bits=bits, expected_records=1000)
    data = [records_of(300, seed=i) for i in range(3)]
    releases = [release_statistics(records, CLASSES, mechanism) for records in data]
    sums = {name: np.sum([each[name] for each in releases], axis=0) for name in (CLASS_SUMS, GRAM)}
    decoded = decoded_sums(sums, mechanism)
    features, labels = (torch.cat([getattr(r, x) for r in data]) for x in ("features", "labels"))
    one_hot = np.eye(CLASSES)[labels.numpy()]

    def ridge(gram: NDArray[np.float64], class_sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.linalg.solve(gram + 10.0 * np.eye(DIM), class_sums.T), np.float64)

    def central(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return ridge(rows.T @ rows, one_hot.T @ rows)

    ours = ridge(decoded.gram, decoded.class_sums)
    rounded = integer_features(features, bits) / 2.0**bits
    assert np.linalg.norm(ours - central(rounded)) <= 1e-5 * np.linalg.norm(ours)
    given = central(features.double().numpy())
    assert np.linalg.norm(ours - given) <= 8 * 2.0**-bits * np.linalg.norm(given)

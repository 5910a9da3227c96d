"""Private training on a GPU: the same guarantee, since sums are whole numbers and a record's gradient is its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.heads import rank_one_gradient, trained_rows
from cachefl_secure.cache.model import CacheModel, logits
from cachefl_secure.lattice import Lattice
from cachefl_secure.plan import Trained
from cachefl_secure.privacy.descent import Descent
from cachefl_secure.privacy.device_trial import _rows_alike, check_rows_alike, check_sums_exact
from cachefl_secure.privacy.integer_gradients import IntegerFactors, IntegerSum, records_at_once
from cachefl_secure.privacy.mechanism import DistributedMechanism, LocalMechanism, NoMechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.training import change_of_keys, train_privately
from cachefl_secure.updates import IntegerUpdate
from tests.privacy.examples import cache_of, distributed, local, records_of

KEY = b"training on a gpu"
SHAPES = [(5, 3, 16), (10, 4, 65), (7, 16, 511), (2, 1, 3), (37, 9, 130), (100, 16, 512), (100, 2, 514)]
BOUNDARIES = (0, 127, 255, 256)


def in_any_order(cache: CacheModel) -> CacheModel:
    """Keys of a class no longer stand together, and one class has more than another."""
    labels = cache.key_labels[
        torch.randperm(len(cache.key_labels), generator=torch.Generator().manual_seed(3))
    ]
    labels[0] = labels[-1]
    return replace(cache, key_labels=labels)


def cache_in(shape: tuple[int, int, int], ordered: bool) -> CacheModel:
    return cache_of(*shape) if ordered else in_any_order(cache_of(*shape))


def mechanism_for(cache: CacheModel, trained: Trained) -> DistributedMechanism:
    lattice = Lattice.of(trained_rows(cache, trained), cache.feature_dim)
    return distributed(
        feature_bits=lattice.feature_bits,
        gradient_bits=lattice.gradient_bits,
        dimension=trained_rows(cache, trained) * cache.feature_dim,
    )


def integers(
    cache: CacheModel, records: FeatureSet, mechanism: DistributedMechanism, trained: Trained, device: str
) -> NDArray[np.int64]:
    update = train_privately(
        cache,
        records,
        mechanism,
        RandomStreams.repeatable(KEY),
        descent=Descent(trained=trained),
        device=device,
    )
    assert isinstance(update, IntegerUpdate)
    return update.integers.astype(np.int64)


def is_rank_one(matrix: NDArray[np.int64]) -> bool:
    """In whole numbers; or zero."""
    row, column = np.unravel_index(np.abs(matrix).argmax(), matrix.shape)
    return np.array_equal(matrix * matrix[row, column], np.outer(matrix[:, column], matrix[row]))


@pytest.fixture(params=[False, True], ids=["float32", "tf32"])
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whoever switches it on has coarser gradients, and sums as exact as before: factors have at most eleven bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = request.param
    _rows_alike.cache_clear()  # so that it is tried anew
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
    _rows_alike.cache_clear()


@pytest.mark.usefixtures("tf32")
@pytest.mark.claim("C7")
@pytest.mark.parametrize("trained", ["keys", "class_residual"])
@pytest.mark.parametrize("ordered", [True, False], ids=["by class", "in any order"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_record_more_adds_one_integer_gradient_whatever_else_is_in_the_batch(
    shape: tuple[int, int, int], ordered: bool, trained: Trained
) -> None:
    cache = cache_in(shape, ordered)
    mechanism = mechanism_for(cache, trained)
    records = records_of(257, shape[0], shape[2])
    check_sums_exact(cache, mechanism, "cuda", Descent(trained=trained))
    check_rows_alike(cache, mechanism, "cuda", Descent(trained=trained))
    longest = 0
    for count in BOUNDARIES:
        fewer, more = (
            integers(cache, FeatureSet(records.features[:n], records.labels[:n]), mechanism, trained, "cuda")
            for n in (count, count + 1)
        )
        moved = more - fewer
        longest = max(longest, int(moved @ moved))
        assert is_rank_one(moved.reshape(-1, shape[2]))
    assert 0 < longest <= mechanism.lattice.unit**2


@pytest.mark.claim("C7")
@pytest.mark.parametrize("ordered", [True, False], ids=["by class", "in any order"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gradient_has_the_same_bits_in_any_place_and_time_after_time(
    shape: tuple[int, int, int], ordered: bool
) -> None:
    cache, records = cache_in(shape, ordered), records_of(256, shape[0], shape[2])
    features, labels = records.features, records.labels

    def gradients(order: torch.Tensor) -> torch.Tensor:
        return rank_one_gradient(cache, features[order].to("cuda"), labels[order].to("cuda"), "keys").cpu()

    expected = gradients(torch.arange(256))
    for seed in range(20):
        order = torch.randperm(256, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(gradients(order), expected[order])


def test_the_noise_is_that_of_the_processor() -> None:
    cache, nobody = cache_of(), records_of(0)
    for mechanism in (distributed(), distributed(sampling_rate=0.5)):
        on_cpu, on_gpu = (integers(cache, nobody, mechanism, "keys", device) for device in ("cpu", "cuda"))
        assert np.array_equal(on_gpu, on_cpu)


@pytest.mark.parametrize("ordered", [True, False], ids=["by class", "in any order"])
def test_sums_are_those_of_the_processor_but_for_last_bits_of_gradients(ordered: bool) -> None:
    cache, records = cache_in((37, 9, 130), ordered), records_of(300, 37, 130)
    mechanism = mechanism_for(cache, "keys")
    on_cpu, on_gpu = (integers(cache, records, mechanism, "keys", device) for device in ("cpu", "cuda"))
    unit = mechanism.lattice.unit
    assert np.linalg.norm((on_gpu - on_cpu).astype(np.float64)) < 0.01 * unit * np.sqrt(300)


@pytest.mark.usefixtures("tf32")
def test_a_sum_of_the_largest_factors_is_exact() -> None:
    """As many as may be multiplied in one go, all of one sign, and each as long as the unit."""
    lattice = Lattice.of(1600, 512)
    count = records_at_once(lattice)
    u = torch.zeros(count, 1600)
    v = torch.zeros(count, 512)
    u[:, 5], v[:, 7] = 2.0**lattice.gradient_bits, 2.0**lattice.feature_bits
    u[:, 9], v[:, 8] = 2.0**lattice.gradient_bits - 1, 1 - 2.0**lattice.feature_bits
    total = IntegerSum((1600, 512), lattice, 4 * count, torch.device("cuda"))
    for _ in range(4):
        total.add(IntegerFactors(u.cuda(), v.cuda()))
    whole = u.double().T @ v.double() * 4
    assert torch.equal(total.clamped(2**31 - 1).double(), whole)


@pytest.mark.parametrize("trained", ["keys", "class_residual"])
@pytest.mark.parametrize("pulls", [False, True], ids=["plain", "pulled"])
def test_several_steps_lead_where_they_lead_on_the_processor(trained: Trained, pulls: bool) -> None:
    """``local`` moves its keys between steps; what was noised so far travels to the GPU. Rounding may fall otherwise."""
    cache, records = cache_of(), records_of(200)
    lattice = Lattice.of(trained_rows(cache, trained), cache.feature_dim)
    mechanism: LocalMechanism = local(
        expected_records=200,
        steps=6,
        sampling_rate=0.5,
        noise_multiplier=2.0,
        feature_bits=lattice.feature_bits,
        gradient_bits=lattice.gradient_bits,
        dimension=trained_rows(cache, trained) * cache.feature_dim,
    )
    replayed = FeatureSet(cache.cache_keys, cache.key_labels)
    descent = (
        Descent(trained=trained, proximal=0.1, replay_weight=0.5, replayed=replayed)
        if pulls
        else Descent(trained=trained)
    )
    on_cpu, on_gpu, again = (
        change_of_keys(
            train_privately(
                cache, records, mechanism, RandomStreams.repeatable(KEY), descent=descent, device=device
            ),
            mechanism,
        )
        for device in ("cpu", "cuda", "cuda")
    )
    assert np.array_equal(on_gpu, again)
    assert np.linalg.norm(on_gpu - on_cpu) < 0.01 * np.linalg.norm(on_cpu)


def test_without_privacy_the_steps_are_those_of_the_processor() -> None:
    cache, records = cache_of(), records_of(200)
    mechanism = NoMechanism(
        sampling_rate=1.0, clip_norm=0.1, steps=5, expected_records=200, learning_rate=0.5
    )
    on_cpu, on_gpu = (
        change_of_keys(train_privately(cache, records, mechanism, device=device), mechanism)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-4, atol=1e-7)


def test_logits_are_those_of_the_processor() -> None:
    records = records_of(50, 37, 130)
    for ordered in (True, False):
        cache = cache_in((37, 9, 130), ordered)
        on_gpu = logits(cache, records.features.to("cuda")).cpu()
        torch.testing.assert_close(on_gpu, logits(cache, records.features), rtol=1e-4, atol=1e-4)

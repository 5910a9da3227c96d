"""Training one residual a class: as private, step for step, as training every key."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import residual_gradient
from cachefl_secure.privacy.descent import Descent
from cachefl_secure.privacy.device_trial import check_rows_alike
from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
from cachefl_secure.privacy.integer_gradients import coins_from, integer_factors, records_at_once
from cachefl_secure.privacy.mechanism import DistributedMechanism, NoMechanism, StepMechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.training import change_of_keys, train_privately
from cachefl_secure.updates import IntegerUpdate
from tests.privacy.examples import RESIDUAL, cache_of, distributed, local, records_of, without_noise

KEY = b"residual tests"
HEAD = Descent(trained="class_residual")
BOUNDARIES = (0, 1, 8, 127, 128, 255, 256, 300)


def update(records: FeatureSet, mechanism: StepMechanism) -> NDArray[np.float64]:
    released = train_privately(cache_of(), records, mechanism, RandomStreams.repeatable(KEY), descent=HEAD)
    return change_of_keys(released, mechanism)


def integers(records: FeatureSet, mechanism: DistributedMechanism) -> NDArray[np.int64]:
    released = train_privately(cache_of(), records, mechanism, RandomStreams.repeatable(KEY), descent=HEAD)
    assert isinstance(released, IntegerUpdate)
    return released.integers.astype(np.int64)


def only(position: int, of: int) -> FeatureSet:
    """So many records, of which this one alone has a feature."""
    records = records_of(of)
    records.features[torch.arange(of) != position] = 0.0
    return records


def slow_update(records: FeatureSet, mechanism: NoMechanism) -> NDArray[np.float64]:
    """Clipped descent on R record by record, by autograd in float64."""
    cache = cache_of()
    residual = torch.zeros(5, 16, dtype=torch.float64, requires_grad=True)
    for _ in range(mechanism.steps):
        total = torch.zeros_like(residual)
        for feature, label in zip(records.features.double(), records.labels, strict=True):
            keys = cache.cache_keys.double() + residual[cache.key_labels]
            scores = cache.logit_scale * cache.text_classifier.double() @ feature
            scores = scores + cache.alpha * cache.cache_values.double().T @ torch.exp(
                -cache.beta * (1 - keys @ feature)
            )
            (gradient,) = torch.autograd.grad(cross_entropy(scores[None], label[None]), residual)
            total += gradient * min(1.0, mechanism.clip_norm / (float(gradient.norm()) + 1e-6))
        residual = (residual - mechanism.step_length * total).detach().requires_grad_()
    return residual.detach().numpy().reshape(-1)


def slow_integers(records: FeatureSet, mechanism: DistributedMechanism) -> NDArray[np.int64]:
    """One step in Python's integers."""
    streams = RandomStreams.repeatable(KEY)
    streams.sampling.coins(len(records), 1.0)
    features = torch.zeros(records_at_once(mechanism.lattice), 16)
    labels = torch.zeros(len(features), dtype=torch.int64)
    features[: len(records)], labels[: len(records)] = records.features, records.labels
    a = residual_gradient(cache_of(), features, labels)
    factors = integer_factors(
        a, features, mechanism.clip_norm, mechanism.lattice, coins_from(streams.rounding)
    )
    u, v = (np.array(x.tolist(), dtype=np.int64).astype(object) for x in (factors.u, factors.v))
    noise = np.zeros(80, np.int32)
    DiscreteGaussian(mechanism.noise_scale).add_to(noise, streams.noise)
    total = (u.T @ v).reshape(-1).astype(np.int64)
    return -np.asarray(np.clip(total, -mechanism.sum_bound, mechanism.sum_bound) + noise)


@pytest.mark.claim("C7")
@pytest.mark.parametrize("steps", [1, 4])
def test_without_noise_it_is_clipped_descent_on_the_residual(steps: int) -> None:
    mechanism = without_noise(local(**RESIDUAL, steps=steps))
    expected = slow_update(records_of(30), mechanism)
    difference = np.linalg.norm(update(records_of(30), mechanism) - expected)
    assert difference <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.claim("C7")
def test_local_steps_are_taken_where_the_noised_steps_before_have_led() -> None:
    """With hardly any noise the integer steps follow those without."""
    usual = {**RESIDUAL, "expected_records": 200, "learning_rate": 4.0}
    mechanism = local(**usual, steps=4, noise_multiplier=0.1)
    exact = update(records_of(200), without_noise(mechanism))
    assert np.linalg.norm(update(records_of(200), mechanism) - exact) < 0.04 * np.linalg.norm(exact)
    one_step = update(records_of(200), without_noise(local(**usual)))
    assert np.linalg.norm(4 * one_step - exact) > 0.2 * np.linalg.norm(exact)  # positions matter here


@pytest.mark.claim("C7")
def test_a_private_step_is_a_sum_of_integers_and_integer_noise() -> None:
    mechanism = distributed(**RESIDUAL, noise_multiplier=0.5)
    assert np.array_equal(integers(records_of(37), mechanism), slow_integers(records_of(37), mechanism))


@pytest.mark.claim("C7")
@pytest.mark.parametrize("count", BOUNDARIES)
@pytest.mark.parametrize("clip_norm", [0.1, 1e3])
def test_one_more_record_changes_the_release_by_one_integer_gradient_of_at_most_the_unit(
    count: int, clip_norm: float
) -> None:
    mechanism = distributed(**RESIDUAL, clip_norm=clip_norm)
    difference = integers(records_of(count + 1), mechanism) - integers(records_of(count), mechanism)
    alone = integers(only(count, count + 1), mechanism) - integers(only(-1, count + 1), mechanism)
    assert np.array_equal(difference, alone)
    assert sum(int(x) ** 2 for x in difference) <= mechanism.lattice.unit**2
    assert difference.any() or clip_norm > 1.0  # far from clipped, a gradient may round to nothing


@pytest.mark.claim("C7")
def test_a_step_without_records_is_noise_only_and_as_strong_as_accounted() -> None:
    mechanism = distributed(**RESIDUAL)
    noise = np.zeros(80, np.int32)
    DiscreteGaussian(mechanism.noise_scale).add_to(noise, RandomStreams.repeatable(KEY).noise)
    assert np.array_equal(integers(records_of(0), mechanism), -noise)
    assert float(noise.std()) == pytest.approx(mechanism.noise_scale, rel=0.3)


@pytest.mark.claim("C7")
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
def test_a_poisoned_record_counts_as_absent(poison: float) -> None:
    poisoned, rest = records_of(12), records_of(12)
    poisoned.features[5, 3] = poison
    rest.features[5] = 0.0
    for mechanism in (local(**RESIDUAL, steps=2), distributed(**RESIDUAL)):
        assert np.array_equal(update(poisoned, mechanism), update(rest, mechanism))


@pytest.mark.claim("C7")
@pytest.mark.parametrize("descent", [Descent(), HEAD])
def test_a_mechanism_accounted_for_another_number_of_entries_trains_nothing(descent: Descent) -> None:
    other = distributed(**RESIDUAL) if descent.trained == "keys" else distributed()
    with pytest.raises(ValueError, match="dimension"):
        train_privately(cache_of(), records_of(3), other, descent=descent)


def test_a_records_place_in_a_batch_does_not_matter_here() -> None:
    check_rows_alike(cache_of(), distributed(**RESIDUAL), "cpu", HEAD)

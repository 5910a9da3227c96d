"""How many records a silo has, and whether one of them is there, must not show beyond one clipped gradient.

Opacus' own ``make_private`` takes sampling rate and divisor from the number of records: N = 8 against 9
was told apart in 120 of 120 tries at a claimed epsilon of 0.55.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import affinity_gradient
from cachefl_secure.privacy.mechanism import LocalMechanism, Mechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.training import train_privately
from tests.privacy.examples import cache_of, local, records_of, without_noise


def released(count: int, mechanism: Mechanism, randomness: bytes = b"same") -> NDArray[np.float64]:
    records = records_of(count)
    return train_privately(cache_of(), records, mechanism, RandomStreams.repeatable(randomness)).values


def only(position: int) -> FeatureSet:
    records = records_of(position + 1)
    return FeatureSet(records.features[position:], records.labels[position:])


def clipped_gradient_released(position: int, mechanism: LocalMechanism) -> NDArray[np.float64]:
    """One record's clipped gradient, times the step length: what a silo with this record alone moves."""
    return train_privately(cache_of(), only(position), without_noise(mechanism)).values


def clipped_gradient_by_formula(position: int, mechanism: LocalMechanism) -> NDArray[np.float64]:
    one = only(position)
    a = affinity_gradient(cache_of(), one.features, one.labels)
    gradient = (a.double().T @ one.features.double()).numpy().reshape(-1)
    factor = min(1.0, mechanism.clip_norm / (float(np.linalg.norm(gradient)) + 1e-6))
    return np.asarray(-mechanism.step_length * factor * gradient)


@pytest.mark.claim("C7")
@pytest.mark.parametrize("count", [0, 1, 8, 127, 128, 300])
@pytest.mark.parametrize("clip_norm", [0.1, 1e3])
def test_one_more_record_changes_the_release_by_exactly_one_clipped_gradient(
    count: int, clip_norm: float
) -> None:
    for noise_multiplier in (8.9167, 0.3):
        mechanism = local(clip_norm=clip_norm, noise_multiplier=noise_multiplier)
        scale = mechanism.step_length * clip_norm  # of the largest change that is accounted for
        difference = released(count + 1, mechanism) - released(count, mechanism)
        exactly = clipped_gradient_released(count, mechanism)
        assert np.linalg.norm(difference - exactly) <= 1e-12 * scale * noise_multiplier
        independent = clipped_gradient_by_formula(count, mechanism)
        assert np.linalg.norm(difference - independent) <= 2e-5 * np.linalg.norm(independent) + 1e-12 * scale
        assert np.linalg.norm(difference) <= scale * (1 + 1e-12)


@pytest.mark.claim("C7")
def test_the_same_release_explains_both_neighbours() -> None:
    """A witness: other noise, as likely up to e^epsilon, under which N + 1 records release what N released."""
    mechanism = local()
    noise = RandomStreams.repeatable(b"same").noise.normals(240)
    scale = mechanism.step_length * mechanism.noise_multiplier * mechanism.clip_norm
    other_noise = noise + clipped_gradient_released(8, mechanism) / scale
    with_nine = released(9, without_noise(mechanism)) - scale * other_noise
    assert np.allclose(with_nine, released(8, mechanism), rtol=0, atol=1e-13 * scale)
    # the two noises are at most 1 / noise_multiplier apart: what the accountant assumes of one step
    assert np.linalg.norm(other_noise - noise) <= 1 / mechanism.noise_multiplier


@pytest.mark.claim("C7")
def test_the_noise_and_its_scale_do_not_depend_on_the_number_of_records() -> None:
    for rate in (1.0, 0.5):
        mechanism = local(sampling_rate=rate)
        added = [released(n, mechanism) - released(n, without_noise(mechanism)) for n in (0, 8, 9, 700)]
        scale = mechanism.step_length * mechanism.noise_multiplier * mechanism.clip_norm
        for noise in added[1:]:
            assert np.allclose(noise, added[0], rtol=0, atol=1e-12 * scale)
        assert float(added[0].std()) == pytest.approx(scale, rel=0.15)


@pytest.mark.claim("C7")
def test_a_sampled_record_that_is_not_drawn_leaves_no_trace() -> None:
    mechanism, seen = local(sampling_rate=0.5), set()
    for key in (b"a", b"b", b"c", b"d", b"e", b"f"):
        drawn = bool(RandomStreams.repeatable(key).sampling.coins(9, 0.5)[8])
        seen.add(drawn)
        difference = released(9, mechanism, key) - released(8, mechanism, key)
        assert (np.abs(difference).max() > 0) == drawn
    assert seen == {True, False}


@pytest.mark.claim("C7")
def test_moving_all_records_to_the_same_spot_moves_the_release_by_the_clip_norm_each() -> None:
    """The bound is met: nothing hides behind an average over the true count."""
    mechanism = without_noise(local())
    first = records_of(1)
    for count in (1, 2, 10):
        same = FeatureSet(first.features.repeat(count, 1), first.labels.repeat(count))
        update = train_privately(cache_of(), same, mechanism).values
        assert float(np.linalg.norm(update)) == pytest.approx(
            count * mechanism.step_length * mechanism.clip_norm, rel=1e-4
        )


def test_torch_threads_and_seeds_are_not_touched_by_training() -> None:
    before = torch.get_rng_state()
    released(20, local(sampling_rate=0.5, steps=3))
    assert torch.equal(before, torch.get_rng_state())

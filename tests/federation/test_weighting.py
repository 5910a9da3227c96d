"""Silos weigh as much as they have records, inside the sum and without telling how many (decision 0035)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.plan import Trained
from cachefl_secure.privacy.descent import Descent
from cachefl_secure.privacy.mechanism import DistributedMechanism, StepMechanism
from cachefl_secure.privacy.training import change_of_keys, train_privately
from tests.privacy.examples import RESIDUAL, cache_of, distributed, local, records_of, without_noise

POOLED = records_of(1010)
SMALL, LARGE = (
    FeatureSet(POOLED.features[part], POOLED.labels[part]) for part in (slice(10), slice(10, None))
)


def change(records: FeatureSet, mechanism: StepMechanism, trained: Trained = "keys") -> NDArray[np.float64]:
    update = train_privately(cache_of(), records, mechanism, descent=Descent(trained=trained))
    return change_of_keys(update, mechanism)


def relative(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("trained", ["keys", "class_residual"])
def test_the_sum_of_one_step_of_ten_and_of_a_thousand_records_is_the_step_on_all_of_them(
    trained: Trained,
) -> None:
    mechanism = without_noise(local(**(RESIDUAL if trained == "class_residual" else {})))
    summed = change(SMALL, mechanism, trained) + change(LARGE, mechanism, trained)
    assert relative(summed, change(POOLED, mechanism, trained)) < 1e-12
    by_formula = np.zeros_like(summed)
    for row in range(len(POOLED)):
        by_formula += change(
            FeatureSet(POOLED.features[row : row + 1], POOLED.labels[row : row + 1]), mechanism, trained
        )
    assert relative(summed, by_formula) < 1e-5


def test_the_same_holds_of_the_integers_that_are_summed_under_masks() -> None:
    """But for how they were rounded, and for the noise, of which there is little here."""
    mechanism: DistributedMechanism = distributed(noise_multiplier=0.5, expected_records=1010)
    summed = change(SMALL, mechanism) + change(LARGE, mechanism)
    assert relative(summed, change(POOLED, without_noise(mechanism))) < 0.2


def test_a_silo_with_the_same_records_a_hundred_times_weighs_a_hundred_times_as_much() -> None:
    mechanism = without_noise(local())
    many = FeatureSet(SMALL.features.repeat(100, 1), torch.cat([SMALL.labels] * 100))
    assert relative(change(many, mechanism), 100 * change(SMALL, mechanism)) < 1e-5


def test_of_several_local_steps_a_larger_silo_makes_longer_ones_and_the_sum_is_another_way() -> None:
    """To first order in the step length it is still the pooled step; beyond that it is not, as FedAvg's is not."""

    def apart(learning_rate: float) -> float:
        mechanism = without_noise(local(steps=3, learning_rate=learning_rate, expected_records=505))
        return relative(change(SMALL, mechanism) + change(LARGE, mechanism), change(POOLED, mechanism))

    assert apart(0.01) < 1e-4
    assert apart(30.0) > 0.05
    lengths = [
        np.linalg.norm(change(silo, without_noise(local(steps=3, learning_rate=0.01))))
        for silo in (SMALL, LARGE)
    ]
    assert lengths[1] > 10 * lengths[0]

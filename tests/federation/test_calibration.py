"""Noise and step length follow from what an operator wants, in public numbers only."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.calibration import (
    LONGEST_STEP,
    NOISE_ON_A_KEY,
    PrivacyChoices,
    learning_rate_for,
)
from cachefl_secure.privacy.accounting import epsilon_spent
from cachefl_secure.privacy.mechanism import mechanism_of


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 8.0])
def test_the_planned_rounds_cost_at_most_the_target_and_hardly_less(epsilon: float) -> None:
    plan = PrivacyChoices(epsilon=epsilon).plan(feature_dim=64, cohort_size=3)
    spent = epsilon_spent([(mechanism_of(plan), plan.rounds)], plan.delta)
    assert 0.995 * epsilon <= spent <= epsilon


@pytest.mark.parametrize("noise_multiplier", [0.3, 2.7, 17.0, 90.0])
@pytest.mark.parametrize("steps_per_round", [1, 4])
def test_the_noise_of_all_rounds_leaves_at_most_its_share_on_a_key(
    noise_multiplier: float, steps_per_round: int
) -> None:
    """By drawing it: the mean of the cohort's noise, added up over the rounds."""
    section = PrivacyChoices(expected_records=100, steps_per_round=steps_per_round).draft()
    rate = learning_rate_for(section, noise_multiplier, feature_dim=64, cohort_size=4)
    trained = msgspec.structs.replace(section, learning_rate=rate, noise_multiplier=noise_multiplier)
    rng = np.random.default_rng(1)
    drawn = rng.normal(0.0, trained.update_noise_std, (section.rounds, 4, 64, 400)).mean(axis=1).sum(axis=0)
    norm = float(np.sqrt((drawn**2).sum(axis=0).mean()))
    assert rate <= LONGEST_STEP
    assert norm <= NOISE_ON_A_KEY * 1.02
    assert rate == LONGEST_STEP or norm > NOISE_ON_A_KEY * 0.85


def test_without_noise_the_step_is_as_long_as_steps_get() -> None:
    plan = PrivacyChoices(mechanism="none").plan(feature_dim=64, cohort_size=3)
    assert (plan.learning_rate, plan.noise_multiplier, plan.epsilon) == (LONGEST_STEP, 0.0, 0.0)


def test_a_chosen_learning_rate_stands() -> None:
    assert PrivacyChoices(learning_rate=0.7).plan(feature_dim=64, cohort_size=3).learning_rate == 0.7


@pytest.mark.parametrize(
    ("choices", "field"),
    [
        (PrivacyChoices(epsilon=math.nan), "epsilon"),
        (PrivacyChoices(epsilon=-1.0), "epsilon"),
        (PrivacyChoices(delta=0.01), "delta"),
        (PrivacyChoices(rounds=0), "rounds"),
        (PrivacyChoices(learning_rate=0.0), "learning_rate"),
    ],
)
def test_a_number_out_of_range_is_named(choices: PrivacyChoices, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        choices.plan(feature_dim=64, cohort_size=3)

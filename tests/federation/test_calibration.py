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
    MechanismName,
    PrivacyChoices,
    Sizes,
    as_local,
    learning_rate_for,
    recalibrated,
)
from cachefl_secure.privacy.accounting import epsilon_spent
from cachefl_secure.privacy.mechanism import StepMechanism, View, step_mechanism
from cachefl_secure.privacy_plan import DistributedPlan, LocalPlan, StepsPlan

SIZES = Sizes(trained_rows=40, feature_dim=64, cohort_size=5, honest_survivors=4)


def mechanism(section: StepsPlan) -> StepMechanism:
    return step_mechanism(section, trained_rows=40, feature_dim=64, honest_survivors=4)


def spent(section: StepsPlan, view: View) -> float:
    return epsilon_spent([(mechanism(section), section.rounds)], section.delta, view)


@pytest.mark.claim("C8")
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize(("name", "view"), [("local", View.LOCAL), ("distributed", View.AGGREGATE)])
def test_the_planned_rounds_cost_at_most_the_target_and_hardly_less(
    epsilon: float, name: MechanismName, view: View
) -> None:
    plan = PrivacyChoices(mechanism=name, epsilon=epsilon, epsilon_local=100.0).plan(SIZES)
    assert 0.99 * epsilon <= spent(plan, view) <= epsilon


@pytest.mark.claim("C8")
def test_a_share_of_the_noise_is_what_the_sum_asks_of_each_honest_silo() -> None:
    together = PrivacyChoices(epsilon=2.0, epsilon_local=100.0).plan(SIZES)
    alone = PrivacyChoices(mechanism="local", epsilon=2.0).plan(SIZES)
    assert together.noise_multiplier == pytest.approx(alone.noise_multiplier / 2, rel=1e-3)
    assert isinstance(together, DistributedPlan)
    # What it costs if everybody else colludes is said, and is what the accountant gives.
    assert together.epsilon_local == pytest.approx(spent(together, View.LOCAL), rel=1e-3)
    assert together.epsilon_local >= spent(together, View.LOCAL) > 2.0


@pytest.mark.claim("C8")
def test_the_cap_on_the_local_epsilon_makes_the_share_larger() -> None:
    capped = PrivacyChoices(epsilon=8.0, epsilon_local=3.0).plan(SIZES)
    assert isinstance(capped, DistributedPlan)
    assert spent(capped, View.LOCAL) <= capped.epsilon_local <= 3.0
    assert spent(capped, View.AGGREGATE) < 4.0


def test_a_silo_by_itself_has_nobody_whose_noise_would_help() -> None:
    section = as_local(PrivacyChoices(epsilon=2.0).plan(SIZES))
    assert isinstance(section, LocalPlan)
    alone = recalibrated(
        section, 2.0, Sizes(trained_rows=40, feature_dim=64, cohort_size=1, honest_survivors=4)
    )
    assert 0.99 * 2.0 <= spent(alone, View.LOCAL) <= 2.0
    assert spent(alone, View.AGGREGATE) == spent(alone, View.LOCAL)


def test_several_local_steps_are_refused_with_distributed_noise() -> None:
    with pytest.raises(ConfigError, match="--mechanism local"):
        PrivacyChoices(steps_per_round=2).plan(SIZES)


@pytest.mark.parametrize("noise_multiplier", [0.3, 2.7, 17.0, 90.0])
@pytest.mark.parametrize("steps_per_round", [1, 4])
def test_the_noise_of_all_rounds_leaves_at_most_its_share_on_a_key(
    noise_multiplier: float, steps_per_round: int
) -> None:
    """By drawing it: the mean of the cohort's noise, added up over the rounds."""
    choices = PrivacyChoices(mechanism="local", expected_records=100, steps_per_round=steps_per_round)
    section = msgspec.structs.replace(choices.draft(), noise_multiplier=noise_multiplier)
    rate = learning_rate_for(section, SIZES)
    trained = msgspec.structs.replace(section, learning_rate=rate)
    assert isinstance(trained, LocalPlan)
    rng = np.random.default_rng(1)
    drawn = rng.normal(0.0, trained.update_noise_std, (section.rounds, 5, 64, 400)).mean(axis=1).sum(axis=0)
    norm = float(np.sqrt((drawn**2).sum(axis=0).mean()))
    assert rate <= LONGEST_STEP
    assert norm <= NOISE_ON_A_KEY * 1.02
    assert rate == LONGEST_STEP or norm > NOISE_ON_A_KEY * 0.85


def test_without_noise_the_step_is_as_long_as_steps_get() -> None:
    plan = PrivacyChoices(mechanism="none").plan(SIZES)
    assert (plan.mechanism, plan.learning_rate, plan.noise_multiplier) == ("none", LONGEST_STEP, 0.0)


def test_a_chosen_learning_rate_stands() -> None:
    assert PrivacyChoices(learning_rate=0.7).plan(SIZES).learning_rate == 0.7


@pytest.mark.parametrize(
    ("choices", "field"),
    [
        (PrivacyChoices(epsilon=math.nan), "epsilon"),
        (PrivacyChoices(epsilon=-1.0), "epsilon"),
        (PrivacyChoices(mechanism="local", epsilon=0.0), "epsilon"),
        (PrivacyChoices(epsilon_local=-1.0), "epsilon_local"),
        (PrivacyChoices(delta=0.01), "delta"),
        (PrivacyChoices(rounds=0), "rounds"),
        (PrivacyChoices(learning_rate=0.0), "learning_rate"),
    ],
)
def test_a_number_out_of_range_is_named(choices: PrivacyChoices, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        choices.plan(SIZES)


def test_noise_that_moves_four_keys_alike_may_be_half_as_much() -> None:
    draft = PrivacyChoices(epsilon=0.5).draft()
    alone, together = (
        learning_rate_for(
            msgspec.structs.replace(draft, noise_multiplier=20.0),
            Sizes(trained_rows=10, feature_dim=64, cohort_size=5, honest_survivors=4, keys_a_row=keys),
        )
        for keys in (1, 4)
    )
    assert together == pytest.approx(alone / 2, rel=0.05)
    assert together < alone < LONGEST_STEP

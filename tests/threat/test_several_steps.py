"""Why only one step a round may count on the others' noise: a silo whose second step repeats its first.

Two full-batch steps a round; h silos, each adding noise of ``noise`` clip norms to each step; only the sum of the
two-step updates is seen. The record in question moves coordinate 0 in the first step. In the second, the silo's
other records all move coordinate 1 towards the sign of coordinate 0, where the silo's *own* noise alone hides
that record. They are many, so the sum shows this sign in spite of everybody's noise. A release is then a coin
that falls on one side with probability Phi(1 / noise) instead of 1/2: what it leaks can be computed exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, norm

from cachefl_secure.lattice import Lattice
from cachefl_secure.privacy.accountants import epsilon_closed_form
from cachefl_secure.privacy.accounting import cost_of
from cachefl_secure.privacy.mechanism import (
    DistributedMechanism,
    GridMechanism,
    LocalMechanism,
    StatisticsMechanism,
    View,
    mechanism_fields,
    mechanism_from_fields,
    step_mechanism,
)
from cachefl_secure.privacy_plan import DistributedPlan, LocalPlan
from tests.privacy.examples import DELTA, distributed, local

STEPS = 2

pytestmark = pytest.mark.claim("C8")


def leaked(noise: float, rounds: int) -> float:
    """Epsilon at DELTA of telling Binomial(rounds, Phi(1 / noise)) from Binomial(rounds, 1/2): the hockey-stick, both ways."""
    counts = np.arange(rounds + 1)
    present, absent = binom.pmf(counts, rounds, norm.cdf(1 / noise)), binom.pmf(counts, rounds, 0.5)

    def excess(epsilon: float) -> float:
        ways = ((present, absent), (absent, present))
        return max(float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum()) for p, q in ways) - DELTA

    return float(brentq(excess, 0.0, 60.0))


def claimed_falsely(silos: int, noise: float, rounds: int) -> float:
    """The claim that all steps are hidden by the noise of all silos."""
    return epsilon_closed_form(noise * math.sqrt(silos), STEPS * rounds, DELTA)


@pytest.mark.parametrize(
    ("silos", "noise", "rounds", "claim", "leak"),
    [(5, 10.0, 50, 1.760, 2.224), (10, 10.0, 50, 1.199, 2.224), (10, 5.0, 50, 2.594, 4.953)],
)
def test_more_leaks_than_noise_of_all_silos_on_all_steps_would_allow(
    silos: int, noise: float, rounds: int, claim: float, leak: float
) -> None:
    assert claimed_falsely(silos, noise, rounds) == pytest.approx(claim, abs=2e-3)
    assert leaked(noise, rounds) == pytest.approx(leak, abs=2e-3)
    # what we say of the same rounds, in either view, is above what leaks
    cost = cost_of([(local(noise_multiplier=noise, steps=STEPS), rounds)], DELTA)
    assert cost.local == cost.aggregate > leaked(noise, rounds) > claimed_falsely(silos, noise, rounds)


def test_the_sum_does_show_the_sign_whatever_the_noise_of_the_others() -> None:
    """The counter-example played: the signs read off the sum are those of the silo's own first step."""
    rng, silos, noise, rounds = np.random.default_rng(0), 10, 10.0, 20_000
    for present in (0, 1):
        first = present + noise * rng.standard_normal(rounds)
        helpers = 12 * noise * math.sqrt(silos)  # records, each moving coordinate 1 by one clip norm
        seen = helpers * np.sign(first) + noise * math.sqrt(silos) * rng.standard_normal(rounds)
        assert np.array_equal(np.sign(seen), np.sign(first))
        expected = norm.cdf(present / noise)
        assert abs((seen > 0).mean() - expected) < 4 * math.sqrt(0.25 / rounds)


def test_local_training_has_one_epsilon() -> None:
    for steps in (1, 2, 7):
        mechanism = local(steps=steps)
        assert {mechanism.noise_multiplier_in(view) for view in View} == {mechanism.noise_multiplier}


def test_one_step_does_gain_from_the_others() -> None:
    cost = cost_of([(distributed(), 20)], DELTA)
    assert cost.aggregate < cost.local


def private_section(**more: object) -> dict[str, object]:
    steps = {"clip_norm": 0.1, "sampling_rate": 1.0, "expected_records": 40, "learning_rate": 0.5}
    noise = {"noise_multiplier": 4.0, "rdp_order": 8, "epsilon_local": 4.0}
    return {**steps, **noise, "rounds": 20, "delta": DELTA, **more}


FALSE_CLAIMS: dict[str, Callable[[], object]] = {
    "distributed with steps": lambda: distributed(steps=2),
    "distributed with other steps": lambda: dataclasses.replace(distributed(), steps=2),  # type: ignore[call-arg]
    "local with honest survivors": lambda: local(honest_survivors=4),
    "local with other honest survivors": lambda: dataclasses.replace(local(), honest_survivors=4),  # type: ignore[call-arg]
    "statistics with steps": lambda: StatisticsMechanism(
        noise_multiplier=4.0,
        honest_survivors=4,
        feature_bits=9,
        dimension=9,
        expected_records=40,
        steps=4,  # type: ignore[call-arg]
    ),
    "a grid with steps": lambda: GridMechanism(
        noise_multiplier=4.0,
        honest_survivors=4,
        unit_bits=16,
        dimension=9,
        expected_records=40,
        steps=4,  # type: ignore[call-arg]
    ),
    "a distributed plan with steps": lambda: DistributedPlan(
        **private_section(epsilon_aggregate=2.0, steps_per_round=2)  # type: ignore[arg-type]
    ),
    "a local plan with honest survivors": lambda: LocalPlan(
        **private_section(steps_per_round=2, honest_survivors=4)  # type: ignore[arg-type]
    ),
    "a local plan with an aggregate epsilon": lambda: LocalPlan(
        **private_section(steps_per_round=2, epsilon_aggregate=2.0)  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("claim", list(FALSE_CLAIMS))
def test_nothing_can_say_several_steps_and_noise_of_others(claim: str) -> None:
    with pytest.raises(TypeError):
        FALSE_CLAIMS[claim]()


def test_a_ledger_cannot_say_it_either() -> None:
    for mechanism, more in ((local(steps=2), "honest_survivors"), (distributed(), "steps")):
        fields = {**mechanism_fields(mechanism), more: "4"}
        with pytest.raises(ValueError, match="fields of mechanism"):
            mechanism_from_fields(fields)


def test_of_a_plan_only_one_step_relies_on_honest_survivors() -> None:
    several = LocalPlan(**private_section(steps_per_round=5))  # type: ignore[arg-type]
    one = DistributedPlan(**private_section(epsilon_aggregate=2.0))  # type: ignore[arg-type]
    made = {
        kind: step_mechanism(section, trained_rows=15, feature_dim=16, honest_survivors=4)
        for kind, section in (("several", several), ("one", one))
    }
    assert isinstance(made["several"], LocalMechanism)
    assert not hasattr(made["several"], "honest_survivors")
    assert isinstance(made["one"], DistributedMechanism)
    assert made["one"].steps == 1
    assert made["one"].lattice == Lattice.of(15, 16)
    with pytest.raises((AttributeError, TypeError)):  # a property of a frozen class
        made["one"].steps = 2  # type: ignore[misc]

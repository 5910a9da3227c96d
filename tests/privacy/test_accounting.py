from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.privacy.accountants import epsilon_closed_form, pld_epsilon
from cachefl_secure.privacy.accounting import (
    MAX_SLACK,
    Cost,
    charged,
    contradicts,
    cost_of,
    epsilon_rdp,
    epsilon_spent,
    is_mixed,
    is_too_coarse,
    noise_multiplier_for,
    rdp_order_for,
    rounds_within,
    runs_of,
    second_opinion,
)
from cachefl_secure.privacy.discretisation import LARGEST_EPSILON, discretisation_slack
from cachefl_secure.privacy.mechanism import LocalMechanism, Mechanism, View
from cachefl_secure.privacy.prv import MOST_ABOVE_PLD, epsilon_prv
from tests.privacy.examples import DELTA, distributed, local, statistics, without_noise

# (sampling rate, noise multiplier, steps), from a sip of noise to a flood
SETTINGS = [
    (1.0, 10.0, 50),
    (1.0, 2.6844, 20),
    (1.0, 100.0, 5),
    (0.25, 4.0, 57),
    (0.25, 2.0, 200),
    (0.05, 1.0, 400),
    (0.16, 2.0, 200),
    (0.01, 0.8, 2000),
    (0.5, 20.0, 3),
]
CAPS = Cost(2.0, 2.0)


@pytest.mark.claim("C7")
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_three_accountants_agree(setting: tuple[float, float, int]) -> None:
    rate, noise, steps = setting
    rounds = [(local(sampling_rate=rate, noise_multiplier=noise), steps)]
    assert 0.0 <= epsilon_prv(rounds, DELTA) - pld_epsilon((setting,), DELTA) <= MOST_ABOVE_PLD
    assert epsilon_rdp(rounds, DELTA) >= epsilon_spent(rounds, DELTA) >= pld_epsilon((setting,), DELTA)


@pytest.mark.claim("C7")
@pytest.mark.parametrize("setting", [(0.05, 300.0, 200), (0.001, 20.0, 200), (0.25, 300.0, 2000)], ids=str)
def test_many_steps_of_little_loss_are_not_drowned_by_the_grid(setting: tuple[float, float, int]) -> None:
    rate, noise, steps = setting
    rounds = [(local(sampling_rate=rate, noise_multiplier=noise), steps)]
    pld, rdp = epsilon_spent(rounds, DELTA), epsilon_rdp(rounds, DELTA)
    assert 0.2 * rdp <= pld <= rdp


def test_the_second_accountant_has_no_order_that_does_not_converge(caplog: pytest.LogCaptureFixture) -> None:
    for rate, noise in ((0.5, 0.9), (0.16, 3.3), (0.01, 0.7)):
        epsilon_rdp([(local(sampling_rate=rate, noise_multiplier=noise), 7)], DELTA)
    assert not caplog.records


@pytest.mark.claim("C7")
@pytest.mark.parametrize("view", View)
def test_accountants_agree_on_a_mixed_history(view: View) -> None:
    rounds: list[tuple[Mechanism, int]] = [
        (distributed(noise_multiplier=10.0), 20),
        (local(sampling_rate=0.25, noise_multiplier=4.0), 30),
        (distributed(sampling_rate=0.05, noise_multiplier=1.0), 100),
        (statistics(), 1),
    ]
    pld = pld_epsilon(runs_of(rounds, view), DELTA)
    assert 0.0 <= epsilon_prv(rounds, DELTA, view) - pld <= MOST_ABOVE_PLD
    assert epsilon_rdp(rounds, DELTA, view) >= epsilon_spent(rounds, DELTA, view) >= pld


@pytest.mark.claim("C7")
@pytest.mark.parametrize("noise", [1.0, 2.6844, 8.9167, 31.45, 300.0])
@pytest.mark.parametrize("steps", [1, 20, 200])
def test_full_batch_is_within_a_thousandth_of_the_exact_formula(noise: float, steps: int) -> None:
    exact = epsilon_closed_form(noise, steps, DELTA)
    assert 0.0 <= pld_epsilon(((1.0, noise, steps),), DELTA) - exact <= 1e-3
    # What is reported also pays for noise that is discrete: out of a thousandth of delta, and the slack.
    rounds = [(local(noise_multiplier=noise), steps)]
    slack = discretisation_slack(local(noise_multiplier=noise).noise_scale, local().dimension, steps)
    dearer = epsilon_closed_form(noise, steps, 0.999 * DELTA) + slack
    if dearer > LARGEST_EPSILON:  # beyond what is proved of discrete noise
        assert epsilon_spent(rounds, DELTA) == math.inf
    else:
        assert exact < dearer <= epsilon_spent(rounds, DELTA) + 1e-12 <= dearer + 1e-3


@pytest.mark.claim("C7")
def test_full_batch_of_several_settings_is_one_gaussian() -> None:
    rounds: list[tuple[Mechanism, int]] = [
        (local(noise_multiplier=5.0), 3),
        (local(noise_multiplier=20.0, steps=2), 4),
        (statistics(), 1),
    ]
    together = 1.0 / math.sqrt(3 / 5.0**2 + 8 / 20.0**2 + 2 / 4.0**2)
    exact = epsilon_closed_form(together, 1, DELTA)
    assert 0.0 <= pld_epsilon(runs_of(rounds, View.LOCAL), DELTA) - exact <= 1e-3


def test_the_closed_form_gives_delta_back() -> None:
    from scipy.stats import norm

    epsilon, mu = epsilon_closed_form(10.0, 50, DELTA), math.sqrt(50) / 10
    delta = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(DELTA, rel=1e-8)


def test_only_the_total_matters_not_how_it_is_written_down() -> None:
    a, b = local(), local(noise_multiplier=5.0)
    one = epsilon_spent([(a, 2), (b, 1), (a, 3)], DELTA)
    assert one == pytest.approx(epsilon_spent([(b, 1), (a, 5)], DELTA), abs=1e-12)
    assert one == pytest.approx(epsilon_spent([(local(steps=5), 1), (b, 1)], DELTA), abs=1e-12)
    assert cost_of([], DELTA) == charged([], DELTA, 10) == Cost(0.0, 0.0)
    assert epsilon_rdp([], DELTA) == 0.0


@pytest.mark.parametrize("rate", [0.25, 0.01])
def test_one_round_more_at_a_time_gives_the_same_as_all_at_once(rate: float) -> None:
    """The way of a ledger, and the way of a plan."""
    one_by_one = [epsilon_spent([(local(sampling_rate=rate), n)], DELTA) for n in range(1, 101)]
    from cachefl_secure.privacy import accountants

    accountants._grown.clear()
    accountants.pld_epsilon.cache_clear()
    assert one_by_one[-1] == pytest.approx(epsilon_spent([(local(sampling_rate=rate), 100)], DELTA), rel=1e-7)
    assert one_by_one == sorted(one_by_one)


def test_what_training_does_besides_sampling_and_noise_costs_nothing() -> None:
    other = local(clip_norm=3.0, learning_rate=9.0, expected_records=7)
    assert epsilon_spent([(other, 20)], DELTA) == epsilon_spent([(local(), 20)], DELTA)


# --- two views


@pytest.mark.claim("C8")
@pytest.mark.parametrize("rate", [1.0, 0.25])
@pytest.mark.parametrize("honest", [1, 3, 10])
def test_in_the_aggregate_the_honest_survivors_noise_counts_and_alone_only_ones_own(
    rate: float, honest: int
) -> None:
    both = cost_of([(distributed(sampling_rate=rate, honest_survivors=honest), 7)], DELTA)
    own = distributed().noise_multiplier
    assert both.local == epsilon_spent([(local(sampling_rate=rate, noise_multiplier=own), 7)], DELTA)
    alone = local(sampling_rate=rate, noise_multiplier=own * math.sqrt(honest))
    assert both.aggregate == pytest.approx(epsilon_spent([(alone, 7)], DELTA), rel=1e-9)
    assert both.aggregate < both.local or honest == 1


@pytest.mark.claim("C8")
def test_steps_inside_a_silo_have_one_epsilon_in_both_views() -> None:
    both = cost_of([(local(steps=5), 4)], DELTA)
    assert both.local == both.aggregate == epsilon_spent([(local(), 20)], DELTA)


@pytest.mark.claim("C8")
def test_the_false_claim_for_several_local_steps_cannot_be_reported() -> None:
    """q = .1, noise 1, 200 steps, h = 5 (evidence, table D): one step a round 2.90, several 9.97 alone."""
    several = local(sampling_rate=0.1, noise_multiplier=1.0, steps=5)
    assert cost_of([(several, 40)], DELTA).aggregate == pytest.approx(9.971, abs=2e-2)
    one = distributed(sampling_rate=0.1, noise_multiplier=1.0, honest_survivors=5)
    assert cost_of([(one, 200)], DELTA).aggregate == pytest.approx(2.899, abs=1e-2)


@pytest.mark.claim("C7")
def test_noise_of_few_integer_steps_is_not_accounted() -> None:
    coarse = local(noise_multiplier=0.05, feature_bits=1, gradient_bits=1)
    assert cost_of([(coarse, 1)], DELTA) == Cost(math.inf, math.inf)
    assert is_too_coarse([(coarse, 1)])
    assert not is_too_coarse([(local(), 20), (without_noise(local()), 1)])
    # What adds up over rounds counts, not one round.
    enough = local(noise_multiplier=60.0, feature_bits=2, gradient_bits=2)
    slacks = {n: discretisation_slack(enough.noise_scale, enough.dimension, n) for n in range(1, 2000)}
    rounds = max(n for n, slack in slacks.items() if slack <= MAX_SLACK)
    assert 1 < rounds < 1999
    assert cost_of([(enough, rounds)], DELTA).local < math.inf
    assert cost_of([(enough, rounds + 1)], DELTA).local == math.inf


def test_the_slack_is_that_of_all_noise_of_one_scale_however_the_rounds_are_listed() -> None:
    several = local(steps=3, feature_bits=4, gradient_bits=4)
    listed = epsilon_spent([(several, 1)] * 20, DELTA)
    assert listed == epsilon_spent([(several, 20)], DELTA)
    assert listed == epsilon_spent([(replace(several, steps=1), 60)], DELTA)


def test_the_slack_is_in_the_epsilon() -> None:
    fine, coarse = (local(feature_bits=bits, gradient_bits=bits) for bits in (8, 4))
    gap = discretisation_slack(coarse.noise_scale, 240, 20) - discretisation_slack(fine.noise_scale, 240, 20)
    difference = epsilon_spent([(coarse, 20)], DELTA) - epsilon_spent([(fine, 20)], DELTA)
    assert difference == pytest.approx(gap, rel=1e-6)
    assert gap > 1e-5


# --- calibration


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps"),
    [(0.5, 1.0, 20), (2.0, 1.0, 20), (8.0, 1.0, 60), (2.0, 0.25, 50), (8.0, 0.05, 500), (0.3, 0.01, 10)],
)
def test_calibrated_noise_spends_the_budget_and_never_passes_it(
    epsilon: float, rate: float, steps: int
) -> None:
    noise = noise_multiplier_for(epsilon, DELTA, rate, steps)
    mechanism = local(sampling_rate=rate, noise_multiplier=noise)
    assert 0.995 * epsilon <= epsilon_spent([(mechanism, steps)], DELTA) <= epsilon
    assert float(f"{noise:.5g}") == noise
    assert rounds_within(mechanism, DELTA, Cost(epsilon, epsilon)) >= steps


def test_calibrated_noise_leaves_room_for_the_coarsest_lattice_that_is_accounted() -> None:
    noise, coarse = noise_multiplier_for(2.0, DELTA, 1.0, 20), 0
    for bits in range(1, 9):
        mechanism = local(noise_multiplier=noise, feature_bits=bits, gradient_bits=bits)
        spent = epsilon_spent([(mechanism, 20)], DELTA)
        coarse += math.isinf(spent)
        assert spent <= 2.0 or math.isinf(spent)
    assert 0 < coarse < 8


@pytest.mark.claim("C11")
def test_rounds_within_a_cap_is_the_last_that_fits() -> None:
    sampled = local(sampling_rate=0.25, noise_multiplier=4.0)
    assert rounds_within(sampled, DELTA, CAPS) == 57
    assert epsilon_spent([(sampled, 57)], DELTA) == pytest.approx(1.9868, abs=1e-4)
    assert epsilon_spent([(sampled, 58)], DELTA) == pytest.approx(2.0053, abs=1e-4)
    assert rounds_within(local(noise_multiplier=20.0), DELTA, CAPS) == 100
    assert rounds_within(local(noise_multiplier=0.5), DELTA, CAPS) == 0
    assert rounds_within(without_noise(local()), DELTA, Cost(1e9, 1e9)) == 0


@pytest.mark.claim("C11")
def test_either_cap_may_be_the_one_that_ends_it() -> None:
    free = 1e6
    for caps in (Cost(3.0, free), Cost(free, 1.5), Cost(3.0, 1.5), Cost(3.0, 2.5)):
        rounds = rounds_within(distributed(), DELTA, caps)
        assert cost_of([(distributed(), rounds)], DELTA).within(caps)
        assert not cost_of([(distributed(), rounds + 1)], DELTA).within(caps)
    by_local = rounds_within(distributed(), DELTA, Cost(3.0, free))
    by_aggregate = rounds_within(distributed(), DELTA, Cost(free, 1.5))
    assert rounds_within(distributed(), DELTA, Cost(3.0, 1.5)) == min(by_local, by_aggregate)


def test_rounds_within_counts_what_was_spent_before() -> None:
    assert rounds_within(local(), DELTA, CAPS) == 20
    assert rounds_within(local(), DELTA, CAPS, earlier=[(local(), 13)]) == 7
    assert rounds_within(local(), DELTA, CAPS, earlier=[(local(), 21)]) == 0


def test_a_cap_beyond_reach_ends_the_search() -> None:
    assert rounds_within(without_noise(local()), DELTA, Cost(math.inf, math.inf)) == 100_000


def test_nothing_is_within_a_cap_that_is_no_number() -> None:
    assert not Cost(0.0, 0.0).within(Cost(math.nan, 1.0))
    assert not Cost(0.0, 0.0).within(Cost(1.0, math.nan))


# --- filters

SAMPLED = local(sampling_rate=0.25, noise_multiplier=4.0)


@pytest.mark.claim("C11")
def test_the_renyi_filter_stops_earlier_than_a_plan_of_one_setting() -> None:
    order = rdp_order_for(0.25, 4.0, 50, DELTA)
    assert order == 10
    within = [n for n in range(1, 60) if epsilon_rdp([(SAMPLED, n)], DELTA, View.LOCAL, order) <= 2.0]
    assert within[-1] == len(within) == 48


@pytest.mark.claim("C11")
def test_pld_decides_for_one_setting_and_for_full_batch_of_many() -> None:
    histories: list[list[tuple[Mechanism, int]]] = [
        [(SAMPLED, 30), (local(sampling_rate=0.25, noise_multiplier=4.0, clip_norm=7.0), 5)],
        [(local(), 3), (local(noise_multiplier=5.0), 2), (statistics(), 1)],
    ]
    for rounds in histories:
        assert not is_mixed(rounds, View.LOCAL)
        assert charged(rounds, DELTA, 10) == cost_of(rounds, DELTA)
        assert second_opinion(rounds, DELTA).local == epsilon_rdp(rounds, DELTA)


@pytest.mark.claim("C11")
@pytest.mark.parametrize("other", [local(), local(sampling_rate=0.25), local(sampling_rate=0.1)], ids=str)
def test_sampled_steps_beside_another_setting_cost_what_the_renyi_filter_says(
    other: LocalMechanism,
) -> None:
    rounds = [(SAMPLED, 30), (other, 1)]
    assert is_mixed(rounds, View.LOCAL)
    bound = charged(rounds, DELTA, 10)
    assert bound.local == epsilon_rdp(rounds, DELTA, View.LOCAL, 10)
    assert bound.local > epsilon_rdp([(SAMPLED, 30)], DELTA, View.LOCAL, 10)
    assert second_opinion(rounds, DELTA) == cost_of(rounds, DELTA)


def test_only_the_view_in_which_settings_differ_pays_for_it() -> None:
    """Two plans with the same noise of one's own, but other numbers of honest survivors."""
    three, four = (distributed(sampling_rate=0.25, honest_survivors=h) for h in (3, 4))
    assert not is_mixed([(three, 1), (four, 1)], View.LOCAL)
    assert is_mixed([(three, 1), (four, 1)], View.AGGREGATE)


settings_of_a_round = st.tuples(
    st.sampled_from([1.0, 0.5, 0.25, 0.05, 0.01]), st.sampled_from([0.8, 1.5, 4.0, 20.0, 100.0])
)


@pytest.mark.claim("C11")
@settings(max_examples=40)
@given(
    history=st.lists(st.tuples(settings_of_a_round, st.integers(1, 40)), min_size=1, max_size=3),
    other=settings_of_a_round,
    order=st.sampled_from([2, 5, 10, 32, 128]),
)
def test_mixing_settings_never_makes_epsilon_smaller_and_accountants_never_contradict(
    history: list[tuple[tuple[float, float], int]], other: tuple[float, float], order: int
) -> None:
    rounds = [(distributed(sampling_rate=q, noise_multiplier=z), n) for (q, z), n in history]
    more = [*rounds, (distributed(sampling_rate=other[0], noise_multiplier=other[1]), 1)]
    before, after = charged(rounds, DELTA, order), charged(more, DELTA, order)
    grid = 1e-3  # PLD may stand a grid step above the truth, RDP does not
    assert before.within(Cost(after.local + grid, after.aggregate + grid))
    for each, spent in ((rounds, before), (more, after)):
        assert not contradicts(second_opinion(each, DELTA), spent, each)


def test_a_second_opinion_below_the_first_is_a_contradiction() -> None:
    rounds = [(SAMPLED, 30)]
    first = charged(rounds, DELTA, 10)
    assert contradicts(Cost(first.local, first.aggregate - 0.01), first, rounds)
    mixed = [*rounds, (local(), 1)]
    assert contradicts(Cost(first.local + 9, first.aggregate), first, mixed)  # PLD above RDP cannot be


def test_accounting_and_ledger_run_without_torch() -> None:
    code = (
        "import sys, cachefl_secure.privacy.ledger as l, cachefl_secure.privacy.accounting as a\n"
        "import cachefl_secure.privacy.statements, cachefl_secure.privacy.prv\n"
        "from cachefl_secure.privacy.mechanism import LocalMechanism\n"
        "m = LocalMechanism(sampling_rate=.5, clip_norm=1., noise_multiplier=2., steps=1, expected_records=1,"
        " learning_rate=1., feature_bits=8, gradient_bits=8, dimension=100)\n"
        "assert a.epsilon_rdp([(m, 3)], 1e-5) > a.epsilon_spent([(m, 3)], 1e-5) > 0\n"
        "assert not {'torch', 'opacus'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

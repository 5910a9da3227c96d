"""Every party derives the same numbers from the plan, and refuses plans that protect too few."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefl_secure.errors import ConfigError
from cachefl_secure.privacy_plan import LocalPlan
from cachefl_secure.protocol.graph import Ring
from cachefl_secure.protocol.parameters import RoundParameters, explain
from tests.protocol.rounds import a_plan, distributed_plan, parameters_for, privacy_plan


@pytest.mark.parametrize(
    ("n", "colluders", "threshold", "dropouts"),
    [
        (3, 0, 2, 0),
        (3, 1, 3, 0),
        (4, 0, 3, 1),
        (5, 0, 3, 2),
        (5, 1, 4, 1),
        (10, 1, 6, 4),
        (30, 10, 21, 9),
        (100, 33, 67, 33),
    ],
)
def test_the_threshold_is_that_of_the_table(n: int, colluders: int, threshold: int, dropouts: int) -> None:
    chosen = RoundParameters.derive(a_plan(colluders=colluders), n, n)
    assert chosen.threshold == threshold
    assert chosen.dropouts_tolerated == dropouts


@given(st.integers(3, 128), st.integers(0, 127), st.integers(3, 128))
def test_a_cohort_has_safe_thresholds_or_is_refused(n: int, colluders: int, minimum: int) -> None:
    plan = a_plan(colluders=colluders, minimum_cohort=minimum)
    if n < minimum or colluders + 2 > n:
        with pytest.raises(ConfigError):
            RoundParameters.derive(plan, n, n)
        return
    chosen = RoundParameters.derive(plan, n, n)
    assert 2 * chosen.threshold > n + colluders
    assert chosen.threshold <= chosen.minimum_survivors <= n
    assert chosen.minimum_survivors >= 3
    assert chosen.minimum_survivors - colluders >= 2


@given(st.integers(3, 128), st.integers(0, 40), st.data())
def test_two_opened_sums_of_one_update_would_need_an_honest_silo_twice(
    roster: int, colluders: int, data: st.DataObject
) -> None:
    """Whatever cohorts a coordinator chooses for its attempts: see the class's guarantee."""
    plan, cohorts = a_plan(colluders=colluders), data.draw(st.tuples(*[st.integers(3, roster)] * 2))
    try:
        first, second = (RoundParameters.derive(plan, cohort, roster) for cohort in cohorts)
    except ConfigError:
        return
    honest_shares_needed = (first.threshold - colluders) + (second.threshold - colluders)
    assert honest_shares_needed > roster - colluders
    assert first.quorum + second.quorum - roster > colluders


def test_a_cohort_below_the_threshold_of_its_roster_is_refused() -> None:
    plan = a_plan(colluders=1)
    assert RoundParameters.derive(plan, 6, 10).threshold == 6
    with pytest.raises(
        ConfigError, match=r"5 silos in the cohort, a roster of 10 with 1 colluder\(s\) needs 6"
    ):
        RoundParameters.derive(plan, 5, 10)
    with pytest.raises(ConfigError, match="11 silos in the cohort, 10 in the roster"):
        RoundParameters.derive(plan, 11, 10)


def test_refusals_name_the_field_and_explain() -> None:
    with pytest.raises(ConfigError, match=r"secure_sum.colluders: 3 silos with 2 colluders: impossible"):
        RoundParameters.derive(a_plan(colluders=2), 3, 3)
    with pytest.raises(
        ConfigError, match=r"secure_sum.minimum_cohort: 4 silos in the cohort, the plan asks for 5"
    ):
        RoundParameters.derive(a_plan(minimum_cohort=5), 4, 4)
    with pytest.raises(ConfigError, match="at most 1024"):
        RoundParameters.derive(a_plan(), 1025, 1025)


def test_the_encoding_follows_the_noise() -> None:
    plan = a_plan(privacy=privacy_plan(noise_multiplier=50.0))
    chosen = RoundParameters.derive(plan, 10, 10)
    assert isinstance(plan.privacy, LocalPlan)
    noise_std = plan.privacy.update_noise_std
    assert chosen.grid_step == noise_std / 32
    assert chosen.clamp == 8 * noise_std + plan.privacy.learning_rate
    assert chosen.vector_bits <= 16
    assert chosen.word.itemsize == 2
    assert chosen.dimension == plan.number_of_parameters
    assert chosen.vector_bytes == 2 * chosen.dimension
    assert chosen.packed_bytes <= 2 * chosen.dimension


def test_integers_with_noise_are_summed_on_the_grid_of_the_gradients() -> None:
    privacy = distributed_plan(noise_multiplier=4.0, records=500)
    plan = a_plan(privacy=privacy)
    chosen, unit = RoundParameters.derive(plan, 5, 5), plan.lattice.unit
    assert unit == 2**14
    assert chosen.grid_step == privacy.step_length * (privacy.clip_norm / unit)
    assert chosen.entry_bound in (500 * unit + 1, 500 * unit + 2)  # all declared records alike, and rounding
    assert chosen.noise_std == pytest.approx(4.0 * unit * math.sqrt(5), rel=1e-12)
    # five clamped sums, and their noise except with probability 2^-40
    largest = 5 * chosen.entry_bound + 8.6 * chosen.noise_std
    assert 2 * largest < 2**chosen.vector_bits < 5 * largest
    assert chosen.sum_bound(5) < 2 ** (chosen.vector_bits - 1)
    assert chosen.sum_bound(4) < chosen.sum_bound(5)


def test_a_sum_of_integers_is_clamped_where_the_signal_is_far_beyond_the_noise() -> None:
    plan = a_plan(privacy=distributed_plan(noise_multiplier=0.5, records=1_000_000))
    assert RoundParameters.derive(plan, 5, 5).entry_bound <= 128 * 0.5 * plan.lattice.unit + 2


def test_without_noise_there_are_65536_levels() -> None:
    plan = a_plan(privacy=privacy_plan(noise_multiplier=0.0, learning_rate=0.5))
    chosen = RoundParameters.derive(plan, 5, 5)
    assert chosen.clamp == 0.5
    assert chosen.entry_bound == 2**15 + 1
    assert chosen.vector_bits == 19
    assert chosen.word.itemsize == 4


def test_noise_too_small_for_32_bits_is_refused() -> None:
    plan = a_plan(privacy=privacy_plan(noise_multiplier=1e-6, records=1_000_000))
    with pytest.raises(ConfigError, match=r"privacy: the sum of 5 silos needs \d+ bits"):
        RoundParameters.derive(plan, 5, 5)


@given(
    st.integers(3, 128),
    st.floats(1e-4, 1e3),
    st.floats(1e-3, 1e3),
    st.integers(1, 100_000),
)
def test_the_bits_hold_every_sum_and_one_bit_fewer_would_not(
    n: int, noise_multiplier: float, learning_rate: float, records: int
) -> None:
    privacy = privacy_plan(noise_multiplier=noise_multiplier, learning_rate=learning_rate, records=records)
    try:
        chosen = RoundParameters.derive(a_plan(privacy=privacy), n, n)
    except ConfigError:
        return
    largest = n * chosen.entry_bound
    assert 2 * largest + 1 <= 2**chosen.vector_bits
    assert 2 * largest + 1 > 2 ** (chosen.vector_bits - 1)
    assert largest < 2 ** (8 * chosen.word.itemsize - 1)


def test_parameters_that_break_a_guarantee_cannot_be_made() -> None:
    good = parameters_for(5, dimension=3, colluders=1)
    changes: tuple[dict[str, Any], ...] = (
        {"threshold": 3},
        {"threshold": 6},
        {"minimum_survivors": 3},
        {"minimum_survivors": 6},
        {"vector_bits": good.vector_bits - 1},
        {"vector_bits": 33},
        {"dimension": 0},
        {"counters": 0},
        {"roster_size": 7},
        {"roster_size": 4},
        {"ring": Ring(4, 3, 1, 1)},
    )
    for change in changes:
        with pytest.raises(ValueError, match=r"do not suit|does not suit|do not hold|has entries"):
            replace(good, **change)


def test_two_parties_with_the_same_plan_derive_the_same_parameters() -> None:
    plan = a_plan(colluders=1)
    again = msgspec.convert(msgspec.to_builtins(plan), type(plan))
    assert RoundParameters.derive(plan, 7, 7) == RoundParameters.derive(again, 7, 7)


def test_what_a_roster_survives_is_said_in_words_that_are_true() -> None:
    assert explain(3, 0) == (
        "3 silos with no colluders: 3 must stay to the end, no silos may drop out; with minimum_survivors = 2, "
        "1 might, but then each of two survivors could subtract its own update from the sum and have the other's. "
        "Three silos can survive one dropout or one colluder, not both"
    )
    assert explain(3, 0, 2).startswith(
        "3 silos with no colluders: 2 must stay to the end, 1 silo may drop out"
    )
    assert explain(3, 1) == (
        "3 silos with 1 colluder: 3 must stay to the end, no silos may drop out. "
        "Colluders cost dropouts: with none and minimum_survivors = 2, up to 1 might drop out"
    )
    assert "impossible" in explain(3, 2)
    assert explain(10, 1).startswith("10 silos with 1 colluder: 6 must stay to the end, 4 silos may drop out")
    assert "impossible, a sum needs 6 survivors" in explain(5, 0, 6)


@pytest.mark.parametrize(("n", "colluders"), [(1024, 1), (1024, 102), (129, 0), (200, 20)])
def test_above_128_silos_the_words_say_how_few_neighbours_open_a_silo(n: int, colluders: int) -> None:
    """Of 1,024 silos with the default of one colluder ten particular ones are enough, not 513."""
    chosen = RoundParameters.derive(a_plan(colluders=colluders), n, n)
    assert chosen.ring is not None
    text = explain(n, colluders)
    assert f"with {chosen.ring.degree} others, and {chosen.ring.threshold} of these that collude" in text
    assert f"{chosen.dropouts_tolerated} dropouts are planned for" in text
    more = RoundParameters.derive(a_plan(colluders=n // 10), n, n).ring
    assert more is not None
    advised = f"with colluders = {n // 10} it would take {more.threshold} of {more.degree}"
    assert (advised in text) is (colluders < n // 10)
    assert explain(128, colluders) == explain(128, colluders, dropout_percent=50)  # no ring, no such words


@given(st.integers(3, 60), st.integers(0, 60), st.integers(2, 61))
def test_the_explanation_agrees_with_the_parameters(n: int, colluders: int, survivors: int) -> None:
    plan = a_plan(colluders=colluders, minimum_survivors=survivors)
    text = explain(n, colluders, survivors)
    try:
        chosen = RoundParameters.derive(plan, n, n)
    except ConfigError:
        assert "impossible" in text
        return
    dropouts = chosen.dropouts_tolerated
    assert f"{chosen.minimum_survivors} must stay to the end, {dropouts or 'no'} silo" in text


@given(st.integers(3, 60), st.integers(1, 60), st.integers(2, 61))
def test_what_no_colluders_would_allow_is_what_a_plan_without_them_allows(
    n: int, colluders: int, survivors: int
) -> None:
    text = explain(n, colluders, survivors)
    pattern = r"with none(?: and minimum_survivors = (\d+))?, up to (\d+) might drop out"
    if (told := re.search(pattern, text)) is None:
        return
    asked = survivors if told[1] is None else int(told[1])
    freed = RoundParameters.derive(a_plan(colluders=0, minimum_survivors=asked), n, n)
    assert freed.dropouts_tolerated == int(told[2]) > 0
    present = RoundParameters.derive(a_plan(colluders=colluders, minimum_survivors=asked), n, n)
    assert present.dropouts_tolerated < freed.dropouts_tolerated


def test_three_silos_survive_one_dropout_or_one_colluder() -> None:
    one_dropout = RoundParameters.derive(a_plan(colluders=0, minimum_survivors=2), 3, 3)
    assert (one_dropout.threshold, one_dropout.dropouts_tolerated) == (2, 1)
    one_colluder = RoundParameters.derive(a_plan(colluders=1, minimum_survivors=2), 3, 3)
    assert (one_colluder.threshold, one_colluder.dropouts_tolerated) == (3, 0)
    assert RoundParameters.derive(a_plan(colluders=0), 3, 3).dropouts_tolerated == 0


def test_the_minimum_of_survivors_is_no_rule_on_the_cohort_and_the_other_way_round() -> None:
    assert RoundParameters.derive(a_plan(minimum_cohort=9), 9, 9).minimum_survivors == 5
    assert RoundParameters.derive(a_plan(minimum_survivors=8), 9, 9).minimum_survivors == 8
    with pytest.raises(
        ConfigError, match=r"secure_sum.minimum_survivors: 9 silos in the cohort, a sum needs 10"
    ):
        RoundParameters.derive(a_plan(minimum_survivors=10), 9, 9)


def test_a_cohort_above_128_sits_on_a_ring() -> None:
    assert RoundParameters.derive(a_plan(colluders=12), 128, 128).ring is None
    chosen = RoundParameters.derive(a_plan(colluders=30), 300, 300)
    assert chosen.ring == Ring(104, 77, 31, 30)
    assert (chosen.threshold, chosen.quorum, chosen.secret_threshold) == (166, 166, 77)
    assert chosen.dropouts_tolerated == 30
    assert RoundParameters.derive(a_plan(colluders=60), 150, 150).ring is None  # no ring is safe: everybody

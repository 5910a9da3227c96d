from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import dp_accounting
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.errors import UnaccountedMechanism
from cachefl_secure.privacy.accounting import Cost, cost_of, epsilon_spent
from cachefl_secure.privacy.mechanism import (
    DistributedMechanism,
    GridMechanism,
    LocalMechanism,
    Mechanism,
    NoisedMechanism,
    NoMechanism,
    StatisticsMechanism,
    StepMechanism,
    View,
    mechanism_fields,
    mechanism_from_fields,
    step_mechanism,
)
from cachefl_secure.privacy_plan import StepsPlan
from tests.privacy.examples import distributed, grid, local, statistics, without_noise

positive = st.floats(1e-9, 1e9)
steps: dict[str, Any] = {
    "sampling_rate": st.floats(1e-6, 1.0),
    "clip_norm": positive,
    "noise_multiplier": positive,
    "expected_records": st.integers(1, 10**6),
    "learning_rate": positive,
    "feature_bits": st.integers(1, 9),
    "gradient_bits": st.integers(1, 8),
    "dimension": st.integers(1, 10**8),
}
mechanisms: st.SearchStrategy[Mechanism] = st.one_of(
    st.builds(LocalMechanism, **steps, steps=st.integers(1, 10_000)),
    st.builds(DistributedMechanism, **steps, honest_survivors=st.integers(1, 1000)),
    st.builds(
        StatisticsMechanism,
        noise_multiplier=positive,
        honest_survivors=st.integers(1, 1000),
        feature_bits=st.integers(7, 12),
        dimension=st.integers(1, 10**8),
        expected_records=st.integers(1, 10**6),
    ),
    st.builds(
        GridMechanism,
        noise_multiplier=positive,
        honest_survivors=st.integers(1, 1000),
        unit_bits=st.integers(7, 24),
        dimension=st.integers(1, 2**14),
        expected_records=st.integers(1, 10**6),
    ),
    st.builds(without_noise, st.builds(LocalMechanism, **steps, steps=st.integers(1, 10_000))),
)


def section(kind: str = "local", **changes: object) -> StepsPlan:
    usual: dict[str, object] = {
        "mechanism": kind,
        "clip_norm": 0.1,
        "sampling_rate": 0.5,
        "expected_records": 200,
        "learning_rate": 0.7,
        "rounds": 20,
        "delta": 1e-5,
    }
    if kind != "none":
        usual |= {"noise_multiplier": 8.9211, "epsilon_local": 2.0, "rdp_order": 10}
    usual |= {"epsilon_aggregate": 1.0} if kind == "distributed" else {"steps_per_round": 3}
    made: StepsPlan = msgspec.convert(usual | changes, StepsPlan)
    return made


def mechanism(plan: StepsPlan) -> StepMechanism:
    return step_mechanism(plan, trained_rows=15, feature_dim=16, honest_survivors=3)


@pytest.mark.parametrize("kind", ["local", "distributed", "none"])
def test_the_plan_and_its_mechanism_take_the_same_step(kind: str) -> None:
    plan = section(kind)
    made = mechanism(plan)
    assert (made.kind, made.step_length) == (kind, plan.step_length)
    assert made.steps == plan.steps_per_round
    assert made.noise_multiplier == plan.noise_multiplier


def test_a_distributed_mechanism_relies_on_the_plans_honest_survivors() -> None:
    made = mechanism(section("distributed"))
    assert isinstance(made, DistributedMechanism)
    assert made.honest_survivors == 3
    assert made.dimension == 15 * 16


@settings(max_examples=300, deadline=None)
@given(mechanisms)
def test_ledger_fields_give_back_the_exact_mechanism(mechanism: Mechanism) -> None:
    fields = mechanism_fields(mechanism)
    assert mechanism_from_fields(fields) == mechanism
    assert all(isinstance(value, str) for value in fields.values())


@pytest.mark.claim("C8")
@settings(max_examples=300, deadline=None)
@given(mechanisms.filter(lambda each: not isinstance(each, NoMechanism)))
def test_no_view_counts_on_more_noise_than_there_is(mechanism: NoisedMechanism) -> None:
    alone, together = (mechanism.noise_multiplier_in(view) for view in View)
    assert alone == mechanism.noise_multiplier  # whatever happens to the others, one's own noise is there
    shares = mechanism.honest_survivors if hasattr(mechanism, "honest_survivors") else 1
    assert together == pytest.approx(alone * math.sqrt(shares))


@pytest.mark.claim("C8")
def test_credit_for_others_noise_on_several_local_steps_cannot_be_expressed() -> None:
    """It is false: later steps depend on what the silo's own noise left of the earlier ones (evidence, 3.2 C)."""
    with pytest.raises(TypeError):
        local(steps=5, honest_survivors=3)
    with pytest.raises(TypeError):
        distributed(steps=5)
    with pytest.raises((AttributeError, TypeError)):
        distributed().steps = 5  # type: ignore[misc]
    assert distributed().steps == 1
    fields = mechanism_fields(local(steps=5)) | {"honest_survivors": "3"}
    with pytest.raises(ValueError, match="fields of mechanism 'local' differ"):
        mechanism_from_fields(fields)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": "8.92110"},
        {"noise_multiplier": "nan"},
        {"noise_multiplier": "-1.0"},
        {"noise_multiplier": "inf"},
        {"sampling_rate": "1.5"},
        {"steps": "1.0"},
        {"steps": "0"},
        {"steps": "+1"},
        {"momentum": "0.9"},
    ],
    ids=str,
)
def test_fields_of_another_spelling_or_range_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        mechanism_from_fields(mechanism_fields(local()) | change)


def test_a_missing_field_is_refused() -> None:
    fields = mechanism_fields(local())
    del fields["noise_multiplier"]
    with pytest.raises(ValueError, match="fields of mechanism 'local' differ"):
        mechanism_from_fields(fields)


@dataclass(frozen=True)
class Invented:
    kind: str = "invented"


def test_an_unknown_mechanism_is_never_free() -> None:
    with pytest.raises(UnaccountedMechanism):
        mechanism_from_fields({"kind": "invented"})
    with pytest.raises(UnaccountedMechanism):
        mechanism_fields(Invented())  # type: ignore[arg-type]
    with pytest.raises(UnaccountedMechanism):
        epsilon_spent([(Invented(), 1)], 1e-5)  # type: ignore[list-item]


def test_a_mechanism_without_noise_costs_infinity() -> None:
    nothing: Mechanism = without_noise(local())
    assert cost_of([(local(), 3), (nothing, 1)], 1e-5) == Cost(math.inf, math.inf)
    assert isinstance(nothing.event(), dp_accounting.NonPrivateDpEvent)
    assert cost_of([(nothing, 0)], 1e-5) == Cost(0.0, 0.0)


def test_the_event_is_one_rounds_steps() -> None:
    full = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(8.9211), 4)
    assert local(steps=4).event() == full
    sampled = dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(8.9211))
    assert local(steps=4, sampling_rate=0.25).event() == dp_accounting.SelfComposedDpEvent(sampled, 4)


@pytest.mark.claim("C7")
@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize(
    "mechanism",
    [
        local(steps=4),
        local(steps=4, sampling_rate=0.25),
        distributed(sampling_rate=0.25),
        statistics(),
        grid(),
    ],
    ids=lambda each: each.kind,
)
def test_the_event_costs_what_accounting_says(mechanism: NoisedMechanism, view: View) -> None:
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(mechanism.event(view), 7)
    assert epsilon_spent([(mechanism, 7)], 1e-5, view) == pytest.approx(
        accountant.get_epsilon(0.999e-5), rel=1e-3
    )


def test_a_private_mechanism_has_noise() -> None:
    with pytest.raises(ValueError, match="none"):
        replace(local(), noise_multiplier=0.0)

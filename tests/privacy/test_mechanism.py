from __future__ import annotations

import math
from dataclasses import dataclass, replace

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.errors import UnaccountedMechanism
from cachefl_secure.plan import PrivacyPlan
from cachefl_secure.privacy.accounting import epsilon_spent
from cachefl_secure.privacy.mechanism import (
    LocalMechanism,
    Mechanism,
    NoMechanism,
    mechanism_fields,
    mechanism_from_fields,
    mechanism_of,
)
from tests.privacy.examples import local, without_noise

positive = st.floats(1e-9, 1e9)
mechanisms = st.builds(
    LocalMechanism,
    sampling_rate=st.floats(1e-6, 1.0),
    clip_norm=positive,
    noise_multiplier=positive,
    steps=st.integers(1, 10_000),
    expected_records=st.integers(1, 10**6),
    learning_rate=positive,
)


def plan(**changes: object) -> PrivacyPlan:
    usual: dict[str, object] = {
        "mechanism": "local",
        "clip_norm": 0.1,
        "noise_multiplier": 8.9167,
        "sampling_rate": 0.5,
        "steps_per_round": 3,
        "expected_records": 200,
        "learning_rate": 0.7,
        "rounds": 20,
        "delta": 1e-5,
        "epsilon": 2.0,
    }
    return PrivacyPlan(**(usual | changes))  # type: ignore[arg-type]


def test_the_plan_and_its_mechanism_take_the_same_step() -> None:
    mechanism = mechanism_of(plan())
    assert isinstance(mechanism, LocalMechanism)
    assert mechanism.step_length == plan().step_length
    assert (mechanism.steps, mechanism.noise_multiplier) == (3, 8.9167)


def test_a_plan_without_privacy_gives_a_mechanism_without_noise() -> None:
    mechanism = mechanism_of(plan(mechanism="none", noise_multiplier=0.0, epsilon=0.0))
    assert isinstance(mechanism, NoMechanism)
    assert mechanism.noise_multiplier == 0.0


@settings(max_examples=200, deadline=None)
@given(mechanisms)
def test_ledger_fields_give_back_the_exact_mechanism(mechanism: LocalMechanism) -> None:
    for each in (mechanism, without_noise(mechanism)):
        fields = mechanism_fields(each)
        assert mechanism_from_fields(fields) == each
        assert all(isinstance(value, str) for value in fields.values())


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": "8.91670"},
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
    assert epsilon_spent([(local(), 3), (nothing, 1)], 1e-5) == math.inf
    assert isinstance(nothing.event(), dp_accounting.NonPrivateDpEvent)
    assert epsilon_spent([(nothing, 0)], 1e-5) == 0.0


def test_the_event_is_one_rounds_steps() -> None:
    full = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(8.9167), 4)
    assert local(steps=4).event() == full
    sampled = dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(8.9167))
    assert local(steps=4, sampling_rate=0.25).event() == dp_accounting.SelfComposedDpEvent(sampled, 4)


def test_a_private_mechanism_has_noise() -> None:
    with pytest.raises(ValueError, match="none"):
        replace(local(), noise_multiplier=0.0)

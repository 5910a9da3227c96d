"""The command line writes the library's defaults again, so that help needs no library: they must be the same."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import pytest

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.calibration import USUAL_MOMENTUM, PrivacyChoices
from cachefl_secure.federation.founding_choices import FoundingChoices, ReleaseChoices
from cachefl_secure.federation.grid_choices import GridChoices
from cachefl_secure.federation.one_release import StatisticsChoices
from cachefl_secure_cli.commands import init, plan
from cachefl_secure_cli.given_privacy import USUAL, GivenPrivacy
from cachefl_secure_cli.privacy_options import MechanismChoice
from cachefl_secure_cli.weight_options import DEFAULT_ALPHA, DEFAULT_BETA

OF_INIT_ALONE = {"learning_rate", "proximal", "replay_weight"}
"""``plan`` tells of privacy, which they do not change."""


@pytest.mark.parametrize(
    ("mechanism", "choices"),
    [
        ("distributed", PrivacyChoices()),
        ("local", PrivacyChoices(mechanism="local")),
        ("none", PrivacyChoices(mechanism="none")),
        ("statistics", StatisticsChoices()),
        ("grid", GridChoices()),
    ],
)
def test_where_nothing_is_given_the_choices_are_those_of_the_library(
    mechanism: str, choices: PrivacyChoices | ReleaseChoices
) -> None:
    assert GivenPrivacy(mechanism=MechanismChoice(mechanism)).choices() == choices


def test_alpha_beta_and_momentum_are_those_of_the_library() -> None:
    usual = {field.name: field.default for field in dataclasses.fields(FoundingChoices)}
    assert (usual["alpha"], usual["beta"]) == (DEFAULT_ALPHA, DEFAULT_BETA)
    parameters = inspect.signature(init.command).parameters
    assert parameters["server_momentum"].default == USUAL_MOMENTUM
    assert parameters["images_per_class"].default == usual["images_per_class"]


@pytest.mark.parametrize(("command", "lacking"), [(init.command, set[str]()), (plan.command, OF_INIT_ALONE)])
def test_both_commands_take_every_option_about_privacy_with_the_same_default(
    command: Callable[..., None], lacking: set[str]
) -> None:
    parameters = inspect.signature(command).parameters
    expected = {field.name: getattr(USUAL, field.name) for field in dataclasses.fields(GivenPrivacy)}
    found = {name: parameters[name].default for name in expected if name in parameters}
    assert found == {name: value for name, value in expected.items() if name not in lacking}


def test_every_option_of_training_is_refused_where_there_is_none() -> None:
    other: dict[str, float] = {
        "rounds": 2,
        "sampling_rate": 0.5,
        "clip_norm": 1.0,
        "steps_per_round": 2,
        "learning_rate": 1.0,
        "proximal": 0.1,
        "replay_weight": 0.1,
    }
    for mechanism in (MechanismChoice.statistics, MechanismChoice.grid):
        GivenPrivacy(mechanism=mechanism, rounds=1).choices()  # one is what there is
        for name, value in other.items():
            given = dataclasses.replace(USUAL, mechanism=mechanism, **{name: value})  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match=f"{name}: is about training"):
                given.choices()

"""From what an operator wants (epsilon, rounds) to the numbers of a plan: noise and length of steps.

Both follow from public numbers only, so choosing them costs no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec

from cachefl_secure.errors import ConfigError
from cachefl_secure.plan import FederationPlan, PrivacyPlan, SecureSumPlan
from cachefl_secure.privacy.accounting import noise_multiplier_for

LONGEST_STEP = 8.0
"""Learning rate with little noise. Found on the embedded data; longer steps gain nothing there."""

NOISE_ON_A_KEY = 2.0
"""Norm of the noise that all rounds together may leave on one cache key; keys start with norm 1.

Found on the embedded data: between 1.4 and 3.2 is best at every epsilon from 0.5 to 8, together and alone.
"""

_Made = TypeVar("_Made", PrivacyPlan, SecureSumPlan, FederationPlan)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyChoices:
    """What an operator chooses of the plan's privacy section."""

    mechanism: Literal["local", "none"] = "local"
    epsilon: float = 8.0
    delta: float = 1e-5
    rounds: int = 20
    sampling_rate: float = 1.0
    steps_per_round: int = 1
    clip_norm: float = 0.1
    expected_records: int = 250
    learning_rate: float | None = None
    """None: as long as the noise allows, see ``learning_rate_for``."""

    def draft(self) -> PrivacyPlan:
        """The section with every choice checked, not yet calibrated.

        Raises:
            ConfigError: a number out of range.
        """
        private = self.mechanism != "none"
        return checked(
            lambda: PrivacyPlan(
                mechanism=self.mechanism,
                clip_norm=self.clip_norm,
                noise_multiplier=1.0 if private else 0.0,
                sampling_rate=self.sampling_rate,
                steps_per_round=self.steps_per_round,
                expected_records=self.expected_records,
                learning_rate=LONGEST_STEP if self.learning_rate is None else self.learning_rate,
                rounds=self.rounds,
                delta=self.delta,
                epsilon=self.epsilon if private else 0.0,
            )
        )

    def plan(self, *, feature_dim: int, cohort_size: int) -> PrivacyPlan:
        """The section, calibrated for sums of ``cohort_size`` updates.

        Raises:
            ConfigError: a number out of range.
        """
        epsilon = math.inf if self.mechanism == "none" else self.epsilon
        made = recalibrated(self.draft(), epsilon, feature_dim=feature_dim, cohort_size=cohort_size)
        if self.learning_rate is None:
            return made
        return msgspec.structs.replace(made, learning_rate=self.learning_rate)


def recalibrated(section: PrivacyPlan, epsilon: float, *, feature_dim: int, cohort_size: int) -> PrivacyPlan:
    """The section with noise and learning rate for another epsilon; infinity gives mechanism ``none``.

    Calibrated with the accountant that decides: after all rounds epsilon is at most the target.
    """
    noise = 0.0
    if not math.isinf(epsilon):
        steps = section.rounds * section.steps_per_round
        noise = noise_multiplier_for(epsilon, section.delta, section.sampling_rate, steps)
    return msgspec.structs.replace(
        section,
        mechanism="local" if noise else "none",
        noise_multiplier=noise,
        epsilon=epsilon if noise else 0.0,
        learning_rate=learning_rate_for(section, noise, feature_dim=feature_dim, cohort_size=cohort_size),
    )


def learning_rate_for(
    section: PrivacyPlan, noise_multiplier: float, *, feature_dim: int, cohort_size: int
) -> float:
    """The longest step, up to ``LONGEST_STEP``, whose noise leaves at most ``NOISE_ON_A_KEY`` on a key.

    A round adds, to each of the C entries of a key, the mean of ``cohort_size`` independent normals of
    standard deviation learning_rate * noise_multiplier * sqrt(steps) / (sampling_rate * expected_records).
    Rounded down to two digits: nobody should read a precision into it.
    """
    steps = section.rounds * section.steps_per_round
    divisor = section.sampling_rate * section.expected_records * math.sqrt(cohort_size)
    per_unit = noise_multiplier * math.sqrt(feature_dim * steps) / divisor
    longest = LONGEST_STEP if per_unit == 0.0 else min(LONGEST_STEP, NOISE_ON_A_KEY / per_unit)
    scale = 10.0 ** (1 - math.floor(math.log10(longest)))
    return math.floor(longest * scale + 1e-9) / scale


def checked(make: Callable[[], _Made]) -> _Made:
    """A section of the plan, or the operator's error if a choice is out of range.

    Raises:
        ConfigError: names the field.
    """
    try:
        made = make()
        msgspec.json.decode(msgspec.json.encode(made), type=type(made))  # bounds are checked on decoding only
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        raise ConfigError("init", place.strip("`."), reason) from None
    except ValueError as error:
        raise ConfigError("init", "", str(error)) from None
    return made

"""From what an operator wants of one release of statistics (epsilons, delta) to the section of its plan.

As ``calibration`` does for rounds of training: from public numbers only, with the accountant that decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec

from cachefl_secure.errors import OPTIONS, ConfigError
from cachefl_secure.federation.calibration import upward
from cachefl_secure.federation.option_errors import check_epsilon, checked
from cachefl_secure.privacy.accounting import Cost, cost_of, noise_multiplier_for
from cachefl_secure.privacy.discretisation import LARGEST_EPSILON
from cachefl_secure.privacy.mechanism import ReleaseMechanism, View, statistics_mechanism
from cachefl_secure.privacy_plan import GridPlan, StatisticsPlan

HeadName = Literal["gda", "ridge"]
DEFAULT_EPSILON_AGGREGATE = 2.0

ORDER_BESIDE_TRAINING = 4
"""``rdp_order`` of every plan of one release. By itself a release needs none, but the ledger's first plan fixes the order for
all that follow: its own best one, about 10, would make sampled steps of a later training cost infinity (decision 0025)."""

DEFAULT_GAMMA = 8.0
"""On the embedded digits and on CLIP ViT-B/32 features of four data sets the GDA head by itself was better than fused with
whatever smaller gamma, at every epsilon from 0.5; 8 leaves text and cache a say where their margins are large."""

_Section = TypeVar("_Section", StatisticsPlan, GridPlan)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsChoices:
    """What an operator chooses of it."""

    epsilon: float = DEFAULT_EPSILON_AGGREGATE
    """Aggregate, after the release."""
    epsilon_local: float = 8.0
    """The most that a silo's local epsilon may become, whatever the secure sum adds."""
    delta: float = 1e-5
    expected_records: int = 250
    head: HeadName = "gda"
    regulariser: float = 0.1
    gamma: float = DEFAULT_GAMMA

    def draft(self) -> StatisticsPlan:
        """The section with every choice checked, not yet calibrated.

        Raises:
            ConfigError: a number out of range.
        """
        check_epsilon(self.epsilon)
        return checked(
            lambda: StatisticsPlan(
                noise_multiplier=1.0,
                epsilon_local=self.epsilon_local,
                epsilon_aggregate=self.epsilon,
                rdp_order=2,
                expected_records=self.expected_records,
                delta=self.delta,
                head=self.head,
                regulariser=self.regulariser,
                gamma=self.gamma,
            ),
            chosen_as={"epsilon_aggregate": "epsilon"},
        )

    def plan(self, *, number_of_classes: int, feature_dim: int, honest_survivors: int) -> StatisticsPlan:
        """The section, calibrated.

        Raises:
            ConfigError: a number out of range, or more noise than there are integers for.
        """
        return calibrated(
            self.draft(),
            number_of_classes=number_of_classes,
            feature_dim=feature_dim,
            honest_survivors=honest_survivors,
        )


def calibrated(
    section: StatisticsPlan, *, number_of_classes: int, feature_dim: int, honest_survivors: int
) -> StatisticsPlan:
    """The section with the least noise, to five digits, that keeps both of its epsilons; the local one as it then is.

    Raises:
        ConfigError: more noise than a plan may hold.
    """

    def prescribed(with_noise: StatisticsPlan) -> ReleaseMechanism:
        return statistics_mechanism(
            with_noise,
            number_of_classes=number_of_classes,
            feature_dim=feature_dim,
            honest_survivors=honest_survivors,
        )

    return with_least_noise(section, prescribed, honest_survivors)


def with_least_noise(
    section: _Section, prescribed: Callable[[_Section], ReleaseMechanism], honest_survivors: int
) -> _Section:
    """As ``calibrated``, of any one release; ``prescribed`` gives the mechanism of a section.

    Raises:
        ConfigError: more noise than a plan may hold.
    """
    targets = Cost(min(section.epsilon_local, LARGEST_EPSILON), section.epsilon_aggregate)
    steps = prescribed(section).steps

    def cost(noise: float) -> Cost:
        with_noise = msgspec.structs.replace(section, noise_multiplier=noise)
        return cost_of([(prescribed(with_noise), 1)], section.delta)

    def noise_for(view: View) -> float:
        epsilon, shares = targets.of(view), 1 if view is View.LOCAL else honest_survivors
        hardly = min(1e-5, epsilon / 100)  # what integers cost: looked up below
        alone = noise_multiplier_for(epsilon, section.delta, 1.0, steps, slack=hardly)
        return alone / math.sqrt(shares)

    deciding = max(View, key=noise_for)
    noise = upward(noise_for(deciding), 5)
    while not cost(noise).within(targets):
        noise = upward(noise * 1.0005, 5)
    local = min(section.epsilon_local, upward(cost(noise).local, 4))
    made = msgspec.structs.replace(
        section, noise_multiplier=noise, epsilon_local=local, rdp_order=ORDER_BESIDE_TRAINING
    )
    try:
        return checked(lambda: made)
    except ConfigError:  # all else was checked as a draft
        choice = "epsilon" if deciding is View.AGGREGATE else "epsilon_local"
        reason = f"{targets.of(deciding):g} asks for more noise than a plan may hold; raise it"
        raise ConfigError(OPTIONS, choice, reason) from None

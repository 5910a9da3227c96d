"""From what an operator wants of a grid over alpha and beta (pairs, epsilons, delta) to the section of its plan.

As ``one_release`` does for statistics: from public numbers only, with the accountant that decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachefl_secure.federation.one_release import with_least_noise
from cachefl_secure.federation.option_errors import check_epsilon, checked
from cachefl_secure.privacy.mechanism import grid_mechanism
from cachefl_secure.privacy_plan import GridPlan

DEFAULT_EPSILON_AGGREGATE = 1.0
"""Less than for training, which is to follow out of the same budget."""
DEFAULT_ALPHAS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""``init``'s default of 10, and half a power of ten further each, twice: text classifiers that are weak want 100."""
DEFAULT_BETAS = (1.0, 3.0, 9.0)
"""``init``'s default of 3, a third and three times as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridChoices:
    """What an operator chooses of it."""

    alphas: tuple[float, ...] = DEFAULT_ALPHAS
    betas: tuple[float, ...] = DEFAULT_BETAS
    epsilon: float = DEFAULT_EPSILON_AGGREGATE
    """Aggregate, after the release."""
    epsilon_local: float = 8.0
    """The most that a silo's local epsilon may become, whatever the secure sum adds."""
    delta: float = 1e-5
    expected_records: int = 250

    def draft(self) -> GridPlan:
        """The section with every choice checked, not yet calibrated.

        Raises:
            ConfigError: a number out of range.
        """
        check_epsilon(self.epsilon)
        return checked(
            lambda: GridPlan(
                noise_multiplier=1.0,
                epsilon_local=self.epsilon_local,
                epsilon_aggregate=self.epsilon,
                rdp_order=2,
                expected_records=self.expected_records,
                delta=self.delta,
                alphas=self.alphas,
                betas=self.betas,
            ),
            chosen_as={"epsilon_aggregate": "epsilon"},
        )

    def plan(self, *, honest_survivors: int) -> GridPlan:
        """The section with the least noise, to five digits, that keeps both epsilons.

        Raises:
            ConfigError: a number out of range, or more noise than there are integers for.
        """
        return with_least_noise(
            self.draft(),
            lambda section: grid_mechanism(section, honest_survivors=honest_survivors),
            honest_survivors,
        )

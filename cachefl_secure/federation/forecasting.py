"""What a plan's rounds will cost in privacy, before anybody trains. Public numbers only; runs without torch."""

from __future__ import annotations

from dataclasses import dataclass

from cachefl_secure.federation.calibration import Sizes
from cachefl_secure.plan import FederationPlan, SecureSumPlan
from cachefl_secure.privacy.accounting import Cost, cost_of, rounds_within
from cachefl_secure.privacy.mechanism import (
    Mechanism,
    View,
    grid_mechanism,
    mechanism_of,
    statistics_mechanism,
    step_mechanism,
)
from cachefl_secure.privacy.terms import planned_cost_of
from cachefl_secure.privacy_plan import (
    GridPlan,
    NoPrivacyPlan,
    PrivacyPlan,
    ReleasePlan,
    StatisticsPlan,
    StepsPlan,
)

_AHEAD = 10


@dataclass(frozen=True, slots=True)
class CostPoint:
    """Both epsilons after so many rounds from the start."""

    rounds: int
    cost: Cost


@dataclass(frozen=True, slots=True)
class Forecast:
    """What every silo that takes part in all rounds spends."""

    mechanism: Mechanism
    delta: float
    rounds: int
    """As planned."""
    survivors: int
    """t: fewest updates in any sum."""
    colluders: int
    """c: silos that may pool what they know with the coordinator."""
    points: tuple[CostPoint, ...]
    """From the first round to ten beyond the plan."""
    caps: Cost
    """A silo's, unless it chooses others."""
    most_rounds: int
    """T_max: after so many rounds a silo with these caps stops by itself."""

    def noise_in(self, view: View) -> float:
        """Noise multiplier that hides one record in one step; 0 without noise."""
        if self.mechanism.kind == "none":
            return 0.0
        return self.mechanism.noise_multiplier_in(view)  # type: ignore[union-attr]  # all other kinds have it


def forecast_of(plan: FederationPlan) -> Forecast:
    """Of a plan that exists."""
    return forecast_for(mechanism_of(plan), plan.privacy, plan.secure_sum)


def forecast(section: StepsPlan, secure_sum: SecureSumPlan, sizes: Sizes) -> Forecast:
    """Of a calibrated privacy section for rounds of training."""
    mechanism = step_mechanism(
        section,
        trained_rows=sizes.trained_rows,
        feature_dim=sizes.feature_dim,
        honest_survivors=secure_sum.honest_survivors,
    )
    return forecast_for(mechanism, section, secure_sum)


def forecast_statistics(
    section: StatisticsPlan, secure_sum: SecureSumPlan, *, number_of_classes: int, feature_dim: int
) -> Forecast:
    """Of a calibrated release of statistics."""
    mechanism = statistics_mechanism(
        section,
        number_of_classes=number_of_classes,
        feature_dim=feature_dim,
        honest_survivors=secure_sum.honest_survivors,
    )
    return forecast_for(mechanism, section, secure_sum)


def forecast_grid(section: GridPlan, secure_sum: SecureSumPlan) -> Forecast:
    """Of a calibrated grid over alpha and beta."""
    mechanism = grid_mechanism(section, honest_survivors=secure_sum.honest_survivors)
    return forecast_for(mechanism, section, secure_sum)


def forecast_for(mechanism: Mechanism, section: PrivacyPlan, secure_sum: SecureSumPlan) -> Forecast:
    """Of rounds of this mechanism, which the section prescribes."""
    private = not isinstance(section, NoPrivacyPlan)
    caps = planned_cost_of(section)
    return Forecast(
        mechanism=mechanism,
        delta=section.delta,
        rounds=section.rounds,
        survivors=secure_sum.guaranteed_survivors,
        colluders=secure_sum.colluders,
        points=tuple(
            CostPoint(rounds, cost_of([(mechanism, rounds)], section.delta))
            for rounds in ([1] if isinstance(section, ReleasePlan) else _shown(section.rounds))
        ),
        caps=caps,
        most_rounds=rounds_within(mechanism, section.delta, caps) if private else 0,
    )


def _shown(rounds: int) -> list[int]:
    """The first round, quarters of the plan, its end, and ten more."""
    quarters = {max(1, rounds * quarter // 4) for quarter in range(1, 5)}
    return sorted({1, *quarters, rounds, rounds + _AHEAD})

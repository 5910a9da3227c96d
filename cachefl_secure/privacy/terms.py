"""What a silo has agreed to for every round of one plan: the mechanism, against whom it holds, and how far."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cachefl_secure.errors import UnaccountedMechanism
from cachefl_secure.names import Digest
from cachefl_secure.plan import FederationPlan, plan_digest
from cachefl_secure.privacy.accounting import Cost
from cachefl_secure.privacy.mechanism import (
    DistributedMechanism,
    GridMechanism,
    LocalMechanism,
    Mechanism,
    NoMechanism,
    StatisticsMechanism,
    mechanism_of,
)
from cachefl_secure.privacy_plan import (
    DistributedPlan,
    GridPlan,
    LocalPlan,
    NoPrivacyPlan,
    PrivacyPlan,
    StatisticsPlan,
)

NO_ORDER = 0
"""``rdp_order`` of a plan without noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Public but for the caps, which are the silo's own."""

    plan_digest: Digest
    mechanism: Mechanism
    delta: float
    survivors: int
    """t: fewest updates in any sum that the silo lets be opened."""
    colluders: int
    """c: institutions that may pool what they know with the coordinator."""
    rdp_order: int
    """Order of the Renyi filter. That of a ledger's first terms is kept for all that follow in it."""
    caps: Cost

    def __post_init__(self) -> None:
        if not has_order(self.mechanism, self.rdp_order):
            raise ValueError("noised rounds need the order of a Renyi filter")
        if not relies_on(self.mechanism, survivors=self.survivors, colluders=self.colluders):
            raise ValueError("the mechanism relies on other shares of noise than the secure sum guarantees")


def relies_on(mechanism: Mechanism, *, survivors: int, colluders: int) -> bool:
    """Whether the mechanism counts on the noise of exactly the honest survivors that such a sum has at least."""
    if not 0 <= colluders < survivors:
        return False
    match mechanism:
        case DistributedMechanism() | StatisticsMechanism() | GridMechanism():
            return mechanism.honest_survivors == survivors - colluders
        case LocalMechanism() | NoMechanism():
            return True
        case _:
            raise UnaccountedMechanism(type(mechanism).__name__)


def has_order(mechanism: Mechanism, rdp_order: int) -> bool:
    """Whether there is an order for the day when rounds of another setting follow."""
    return rdp_order >= 2 or isinstance(mechanism, NoMechanism)


def terms_of(plan: FederationPlan, caps: Cost) -> Terms:
    """The terms of a plan for a silo with these caps."""
    section = plan.privacy
    return Terms(
        plan_digest=plan_digest(plan),
        mechanism=mechanism_of(plan),
        delta=section.delta,
        survivors=plan.secure_sum.guaranteed_survivors,
        colluders=plan.secure_sum.colluders,
        rdp_order=NO_ORDER if isinstance(section, NoPrivacyPlan) else section.rdp_order,
        caps=caps,
    )


def planned_cost_of(section: PrivacyPlan) -> Cost:
    """What the plan's rounds may cost at most: a silo's caps unless it chooses others."""
    match section:
        case DistributedPlan() | StatisticsPlan() | GridPlan():
            return Cost(section.epsilon_local, section.epsilon_aggregate)
        case LocalPlan():
            return Cost(section.epsilon_local, section.epsilon_local)
        case NoPrivacyPlan():
            return Cost(math.inf, math.inf)

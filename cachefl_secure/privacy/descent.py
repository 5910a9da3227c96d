"""What a silo's steps move. Public and fixed in the plan; it decides about no noise and costs no privacy by itself."""

from __future__ import annotations

from dataclasses import dataclass

from cachefl_secure.plan import FederationPlan, Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """Beside the mechanism, whose ``dimension`` and lattice must be those of what is trained."""

    trained: Trained = "keys"


def descent_of(plan: FederationPlan) -> Descent:
    """As the plan prescribes it."""
    return Descent(trained=plan.cache.trained)


KEYS_ALONE = Descent()

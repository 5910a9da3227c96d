"""What a silo's steps move, and what else pulls at it: public, fixed in the plan, and free.

A step's private part is the noised sum of clipped gradients, which the mechanism fixes and the ledger charges. What
stands here are functions of where the noised steps so far have led and of public numbers, so they are post-processing
of what is charged anyway: with them or without, (epsilon, delta) is the same.

``trained``         what the numbers of an update are, see ``cache.heads``
``proximal``        before each further step of a round the change so far shrinks by this part (FedProx, Li et al. 2020,
                    whose mu is this part divided by the step length; so it cannot overshoot)
``replay_weight``   of the synthetic images' mean clipped gradient, at the same position (synthetic replay)
``pairs``           of alpha and beta that a grid tries: nothing moves there

Only where the silo owns its steps, with ``local`` and ``none``. With ``distributed`` there is one step a round, and
what leaves is a sum of integers that all parties must turn into the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel
from cachefl_secure.plan import FederationPlan, Trained
from cachefl_secure.privacy_plan import GridPlan, StatisticsPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """Beside the mechanism, whose ``dimension`` and lattice must be those of what is trained.

    A grid's ``pairs`` ride along although nothing descends there: this is the one object by which whatever a plan fixes
    beside the mechanism reaches ``silo_attempt.Trainer``, and whoever only trains does not look at them.
    """

    trained: Trained = "keys"
    proximal: float = 0.0
    replay_weight: float = 0.0
    replayed: FeatureSet | None = None
    """The synthetic images: the keys and labels of the first cache. Never a silo's records."""
    pairs: tuple[tuple[float, float], ...] = ()
    """(alpha, beta) of the cache model, in the order of a grid's counts."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.proximal < 1.0 or self.replay_weight < 0.0:
            raise ValueError("proximal must be in [0, 1), replay_weight not negative")
        if (self.replay_weight > 0.0) != (self.replayed is not None):
            raise ValueError("replay needs images and a weight")

    @property
    def is_plain(self) -> bool:
        """Whether nothing pulls but the records."""
        return self.proximal == 0.0 and self.replayed is None


def descent_of(plan: FederationPlan, initial: Callable[[], CacheModel]) -> Descent:
    """As the plan prescribes it. ``initial`` gives the cache that round 1 starts from; called if it is needed.

    One release has no steps at which anything could pull: ``KEYS_ALONE``, or the pairs of a grid.
    """
    section, replayed = plan.privacy, None
    if isinstance(section, StatisticsPlan):
        return KEYS_ALONE
    if isinstance(section, GridPlan):
        return Descent(pairs=tuple((plan.cache.in_model(alpha), beta) for alpha, beta in section.pairs))
    if section.replay_weight > 0.0:
        first = initial()
        replayed = FeatureSet(first.cache_keys, first.key_labels)
    return Descent(
        trained=plan.cache.trained,
        proximal=section.proximal,
        replay_weight=section.replay_weight,
        replayed=replayed,
    )


KEYS_ALONE = Descent()

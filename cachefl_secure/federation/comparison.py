"""What privacy costs in accuracy, on data that one party may pool: public, consented, or its own.

The same training as in a round, at several epsilons, for the federation and for each silo alone. Without
messages and masks, which cancel exactly, and, with ``local``, without the rounding to 1/32 of the noise that goes
with them. "Without noise" is the same training with noise 0: it still clips. Nothing is charged to any ledger,
because nothing leaves; the data must be data that whoever runs this may see together.

An epsilon here is aggregate where the plan says ``distributed``, and local else. What the local one then becomes is
told beside it, uncapped: a cap would compare something else. A silo that trains alone has nobody whose noise
would help: for it the two are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import msgspec
import numpy as np

from cachefl_secure.cache.evaluate import evaluate, zero_shot
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.heads import moved
from cachefl_secure.cache.model import CacheModel
from cachefl_secure.federation.calibration import PrivacyChoices, Sizes, as_local, recalibrated
from cachefl_secure.federation.ports import Progress, silent
from cachefl_secure.federation.release_comparison import (
    ReleasePoint,
    release_point,
    statistics_section,
    without_noise,
)
from cachefl_secure.federation.server_steps import Moments, server_step
from cachefl_secure.plan import FederationPlan
from cachefl_secure.privacy.descent import descent_of
from cachefl_secure.privacy.discretisation import LARGEST_EPSILON
from cachefl_secure.privacy.mechanism import ReleaseMechanism, mechanism_of
from cachefl_secure.privacy.training import change_of_keys, train_privately
from cachefl_secure.privacy_plan import (
    DistributedPlan,
    NoPrivacyPlan,
    PrivacyPlan,
    ReleasePlan,
    StepsPlan,
)

_NO_CAP = LARGEST_EPSILON


@dataclass(frozen=True, slots=True)
class GridPoint:
    """Accuracies in [0, 1] after all rounds at one epsilon; infinity means no noise."""

    epsilon: float
    epsilon_local: float
    """Of each silo of the federation; the same with ``local``."""
    noise_multiplier: float
    together: float
    alone: tuple[float, ...]
    """Each silo training by itself with the same mechanism, in the order given."""

    @property
    def alone_mean(self) -> float:
        return float(np.mean(self.alone))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything on the same held-out images."""

    rounds: int
    delta: float
    view: str
    """``aggregate`` or ``local``: which epsilon the grid is of."""
    zero_shot: float
    synthetic_cache: float
    non_private: tuple[float, ...]
    """The federation without noise, after each round."""
    grid: tuple[GridPoint, ...]
    releases: tuple[ReleasePoint, ...]
    """One release of statistics at the epsilons of the grid; the last is without noise."""
    held_out: int
    """Images that everything was measured on."""


def train_together(
    start: CacheModel, silos: Sequence[FeatureSet], plan: FederationPlan
) -> Iterator[CacheModel]:
    """The cache after each round of these silos, which follows from the mean of their updates as in a round."""
    mechanism, descent = mechanism_of(plan), descent_of(plan, lambda: start)
    if isinstance(mechanism, ReleaseMechanism):
        raise ValueError("a plan of one release trains nothing")
    model, moments = start, Moments()
    for _ in range(plan.privacy.rounds):
        updates = [train_privately(model, records, mechanism, descent=descent) for records in silos]
        mean = np.mean([change_of_keys(update, mechanism) for update in updates], axis=0)
        change, moments = server_step(plan.server, moments, mean)
        model = moved(model, change, plan.cache.trained)
        yield model


def compare(
    model: CacheModel,
    silos: Sequence[FeatureSet],
    held_out: FeatureSet,
    plan: FederationPlan,
    epsilons: Sequence[float],
    progress: Progress = silent,
) -> Comparison:
    """The grid of accuracies. The noise is fresh on every call: expect a point or two of spread.

    Where the plan is for one release, training is as ``init`` would have it with the same delta and declared records.
    """
    privacy, section = _steps_of(plan.privacy), statistics_section(plan.privacy)
    total = 1 + len(epsilons) * (1 + len(silos))
    done = 0

    def final(members: Sequence[FeatureSet], section: StepsPlan) -> float:
        nonlocal done
        *_, last = train_together(model, members, _with(plan, section))
        done += 1
        progress(done, total, "compare")
        return evaluate(last, held_out).top1

    def calibrated(section: StepsPlan, epsilon: float, cohort_size: int) -> StepsPlan:
        """Noise and step length that suit this epsilon and this many updates, so that each is at its best."""
        return recalibrated(section, epsilon, Sizes.of(plan, cohort_size))

    without = calibrated(privacy, math.inf, len(silos))
    non_private = tuple(
        evaluate(each, held_out).top1 for each in train_together(model, silos, _with(plan, without))
    )
    grid, releases = [], []
    shares = plan.secure_sum.honest_survivors if isinstance(privacy, DistributedPlan) else 1
    for epsilon in epsilons:
        releases.append(release_point(model, silos, held_out, section, epsilon, shares))
        by_itself = calibrated(as_local(privacy), epsilon, 1)
        alone = tuple(final([records], by_itself) for records in silos)
        together = calibrated(_uncapped(privacy), epsilon, len(silos))
        local = epsilon if isinstance(together, NoPrivacyPlan) else together.epsilon_local
        grid.append(GridPoint(epsilon, local, together.noise_multiplier, final(silos, together), alone))
    releases.append(without_noise(model, silos, held_out, section))
    progress(total, total, "compare")
    return Comparison(
        rounds=privacy.rounds,
        delta=privacy.delta,
        view="aggregate" if isinstance(privacy, DistributedPlan) else "local",
        zero_shot=zero_shot(model, held_out).top1,
        synthetic_cache=evaluate(model, held_out).top1,
        non_private=non_private,
        grid=tuple(grid),
        releases=tuple(releases),
        held_out=len(held_out),
    )


def best_of(found: Comparison) -> list[tuple[float, float]]:
    """(epsilon, gain) wherever one release is ahead of all rounds of training by more than the images' chance explains.

    Of two equal models it says so in one table of twenty: by a normal difference of two accuracies on so many images,
    one side, shared out over every comparison (Bonferroni). Chance in the noise of a run comes on top. The gain is in
    [0, 1], of the head fused or alone, whichever is better.
    """
    errors = NormalDist().inv_cdf(1.0 - 0.05 / (2 * len(found.releases)))
    training = [*(point.together for point in found.grid), found.non_private[-1]]
    ahead = []
    for release, trained in zip(found.releases, training, strict=True):
        best = max(release.fused, release.alone)
        spread = best * (1 - best) + trained * (1 - trained)
        if best - trained > errors * math.sqrt(spread / max(found.held_out, 1)):
            ahead.append((release.epsilon, best - trained))
    return ahead


def _steps_of(plan: PrivacyPlan) -> StepsPlan:
    if not isinstance(plan, ReleasePlan):
        return plan
    return PrivacyChoices(delta=plan.delta, expected_records=plan.expected_records).draft()


def _with(plan: FederationPlan, section: PrivacyPlan) -> FederationPlan:
    return msgspec.structs.replace(plan, privacy=section)


def _uncapped(privacy: StepsPlan) -> StepsPlan:
    if isinstance(privacy, DistributedPlan):
        return msgspec.structs.replace(privacy, epsilon_local=_NO_CAP)
    return privacy

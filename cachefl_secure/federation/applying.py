"""What a round's sum makes of the cache: another step of its keys, the sums of a release beside them, or another alpha and beta.

Post-processing of a sum that everybody has: costs no privacy. Bit for bit the same at every party.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from cachefl_secure.cache.closed_form import HeadKind
from cachefl_secure.cache.heads import moved
from cachefl_secure.cache.model import CacheModel, with_sums
from cachefl_secure.cache.released_sums import ReleasedSums
from cachefl_secure.federation.server_steps import Moments, server_step
from cachefl_secure.grid_layout import GRID, best_of
from cachefl_secure.plan import CachePlan, FederationPlan
from cachefl_secure.privacy_plan import DistributedPlan, GridPlan, LocalPlan, NoPrivacyPlan, StatisticsPlan
from cachefl_secure.protocol.encoding import DecodedSum
from cachefl_secure.statistics_layout import CLASS_SUMS, GRAM, UNIT


def apply_aggregate(
    model: CacheModel, moments: Moments, decoded: DecodedSum, survivors: int, plan: FederationPlan
) -> tuple[CacheModel, Moments]:
    """The cache after the step that the mean update of the survivors leads to, and what the next step needs to know.

    With ``statistics`` the cache with their sums, with ``grid`` the one with the pair that won: there is no step.
    """
    match plan.privacy:
        case DistributedPlan() | LocalPlan() | NoPrivacyPlan():
            change, moments = server_step(plan.server, moments, decoded.values / survivors)
            return moved(model, change, plan.cache.trained), moments
        case StatisticsPlan() as section:
            noise_std = section.noise_multiplier * math.sqrt(survivors)
            sums = released_sums(section, decoded.integers, classes=len(plan.classes), noise_std=noise_std)
            return with_sums(model, sums), moments
        case GridPlan() as section:
            alpha, beta = section.pairs[best_of(decoded.integers[GRID].tolist())]
            return replace(model, alpha=plan.cache.in_model(alpha), beta=beta), moments
        case unknown:
            assert_never(unknown)


def chosen_pair(model: CacheModel, cache: CachePlan, section: GridPlan) -> tuple[float, float]:
    """(alpha, beta), as the plan writes them, of the cache after a grid's round.

    Raises:
        ValueError: the cache has none of the grid's pairs, so it is of no such round.
    """
    for alpha, beta in section.pairs:
        if (cache.in_model(alpha), beta) == (model.alpha, model.beta):
            return alpha, beta
    raise ValueError("a cache with none of the grid's pairs")


def released_sums(
    section: StatisticsPlan, integers: Mapping[str, NDArray[np.int64]], *, classes: int, noise_std: float
) -> ReleasedSums:
    """Sums by name as a cache keeps them. ``noise_std`` is that of all noise in them, in units of features."""
    return ReleasedSums(
        torch.from_numpy(integers[CLASS_SUMS].reshape(classes, -1)),
        torch.from_numpy(integers[GRAM]),
        unit=UNIT,
        noise_std=noise_std,
        head=HeadKind(section.head),
        regulariser=section.regulariser,
        gamma=section.gamma,
    )

"""Which mechanism a schedule plays, and what a silo of the simulation releases under it.

Numbers stand in for training; they are as large as the plan allows in some entries of every silo, so that a sum that
is too narrow anywhere comes out wrong. ``none`` encodes, charges and releases as ``local`` does.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.one_release import StatisticsChoices
from cachefl_secure.grid_layout import count_bound
from cachefl_secure.grid_layout import entry_bound as grid_entry_bound
from cachefl_secure.plan import FederationPlan
from cachefl_secure.privacy.mechanism import (
    DistributedMechanism,
    GridMechanism,
    LocalMechanism,
    NoMechanism,
    StatisticsMechanism,
    mechanism_of,
)
from cachefl_secure.privacy_plan import PrivacyPlan
from cachefl_secure.statistics_layout import entry_bound
from cachefl_secure.updates import IntegerUpdate, NoisedSums, NoisedUpdate, PrivateUpdate
from tests.small_federation import one_release, over_grid, small_privacy

LOCAL, DISTRIBUTED, STATISTICS, GRID = "local", "distributed", "statistics", "grid"
MECHANISMS = (LOCAL, DISTRIBUTED, STATISTICS, GRID)
ONE_RELEASE = (STATISTICS, GRID)
_TURNS = (LOCAL, LOCAL, LOCAL, STATISTICS, LOCAL, DISTRIBUTED, GRID, STATISTICS)
_BLOCK = 16
"""Seeds in a row that play one mechanism: strategies go by the seed modulo 16."""

_MANY_RECORDS = 20_000
"""A sum over so many needs words of 64 bits."""


def mechanism_of_seed(seed: int) -> str:
    """Of eight schedules four play ``local``, two ``statistics``, one each of the others."""
    return _TURNS[seed // _BLOCK % len(_TURNS)]


def privacy_of(mechanism: str, silos: int) -> PrivacyPlan | None:
    """The section of a plan. Three silos release statistics in words of 64 bits, more of them in fewer bits."""
    match mechanism:
        case "local":
            return None  # that of a small federation
        case "distributed":
            return small_privacy(PrivacyChoices(mechanism="distributed", rounds=4, expected_records=15))
        case "statistics":
            return one_release(StatisticsChoices(expected_records=_MANY_RECORDS if silos == 3 else 15))
        case "grid":
            return over_grid()
    raise ValueError(f"the simulation does not play {mechanism!r}")


def drawn_update(plan: FederationPlan, rng: np.random.Generator) -> NoisedUpdate:
    """Another update each time, as with real noise."""
    match mechanism := mechanism_of(plan):
        case LocalMechanism() | NoMechanism():
            return PrivateUpdate(rng.normal(size=plan.number_of_parameters) * 3)
        case DistributedMechanism():
            drawn = _integers(rng, mechanism.dimension, mechanism.sum_bound, mechanism.noise_scale)
            return IntegerUpdate(drawn.astype(np.int32))
        case StatisticsMechanism():
            unit, records = mechanism.unit, mechanism.expected_records
            drawn = _integers(rng, mechanism.dimension, records * unit, mechanism.noise_scale)
            largest = entry_bound(unit, records, mechanism.noise_multiplier)
            drawn[:2] = drawn[-2:] = largest, -largest  # in both of the two vectors
            return NoisedSums(drawn)
        case GridMechanism():
            most = count_bound(mechanism.step, mechanism.expected_records)
            drawn = _integers(rng, mechanism.dimension, most, mechanism.noise_scale)
            noise = mechanism.noise_multiplier
            largest = grid_entry_bound(mechanism.dimension, mechanism.expected_records, noise)
            drawn[:2] = largest, -largest
            return NoisedSums(drawn)
        case unknown:
            assert_never(unknown)


def _integers(rng: np.random.Generator, size: int, bound: int, noise_scale: float) -> NDArray[np.int64]:
    """Sums of clipped records at both ends of their bound and between, with a share of noise."""
    exact = rng.integers(-bound, bound, size, endpoint=True)
    exact[2:4] = bound, -bound
    noised: NDArray[np.int64] = exact + np.rint(rng.normal(size=size) * noise_scale).astype(np.int64)
    return noised

"""What one release of statistics would give instead of rounds of training: the same data, the same epsilons.

As ``comparison``: without messages and masks, on data that whoever runs this may see together. Nothing is charged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from cachefl_secure.cache.evaluate import closed_form_alone, evaluate
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel, with_sums
from cachefl_secure.federation.applying import released_sums
from cachefl_secure.federation.one_release import StatisticsChoices, calibrated
from cachefl_secure.privacy.discretisation import LARGEST_EPSILON
from cachefl_secure.privacy.mechanism import statistics_mechanism
from cachefl_secure.privacy.statistics import integer_sums, release_statistics
from cachefl_secure.privacy_plan import PrivacyPlan, StatisticsPlan


@dataclass(frozen=True, slots=True)
class ReleasePoint:
    """Accuracies in [0, 1] of the head: fused with text and cache, and by itself. Infinity means no noise."""

    epsilon: float
    epsilon_local: float
    fused: float
    alone: float


def statistics_section(privacy: PrivacyPlan) -> StatisticsPlan:
    """The plan's own, or one with its delta and declared records."""
    if isinstance(privacy, StatisticsPlan):
        return privacy
    return StatisticsChoices(delta=privacy.delta, expected_records=privacy.expected_records).draft()


def release_point(
    model: CacheModel,
    silos: Sequence[FeatureSet],
    held_out: FeatureSet,
    section: StatisticsPlan,
    epsilon: float,
    honest_survivors: int,
) -> ReleasePoint:
    """One release at this epsilon: aggregate for several honest survivors, local for one. The local one is not capped."""
    asked = msgspec.structs.replace(section, epsilon_aggregate=epsilon, epsilon_local=LARGEST_EPSILON)
    ready = calibrated(
        asked,
        number_of_classes=model.number_of_classes,
        feature_dim=model.feature_dim,
        honest_survivors=honest_survivors,
    )
    after = released_together(model, silos, ready, honest_survivors)
    return _point(after, held_out, epsilon, ready.epsilon_local)


def released_together(
    model: CacheModel, silos: Sequence[FeatureSet], section: StatisticsPlan, honest_survivors: int
) -> CacheModel:
    """The cache with the sums that these silos release, as after a round."""
    mechanism = statistics_mechanism(
        section,
        number_of_classes=model.number_of_classes,
        feature_dim=model.feature_dim,
        honest_survivors=honest_survivors,
    )
    releases = [release_statistics(records, model.number_of_classes, mechanism) for records in silos]
    sums = {name: np.sum([each[name] for each in releases], axis=0) for name in releases[0]}
    noise_std = section.noise_multiplier * len(silos) ** 0.5
    return with_sums(
        model, released_sums(section, sums, classes=model.number_of_classes, noise_std=noise_std)
    )


def without_noise(
    model: CacheModel, silos: Sequence[FeatureSet], held_out: FeatureSet, section: StatisticsPlan
) -> ReleasePoint:
    """The same sums exactly: not private."""
    each = [integer_sums(records, model.number_of_classes) for records in silos]
    sums = {name: np.sum([one[name] for one in each], axis=0) for name in each[0]}
    after = with_sums(model, released_sums(section, sums, classes=model.number_of_classes, noise_std=0.0))
    return _point(after, held_out, float("inf"), float("inf"))


def _point(model: CacheModel, held_out: FeatureSet, epsilon: float, epsilon_local: float) -> ReleasePoint:
    fused, alone = evaluate(model, held_out).top1, closed_form_alone(model, held_out).top1
    return ReleasePoint(epsilon, epsilon_local, fused, alone)

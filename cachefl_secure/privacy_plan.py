"""The privacy section of a plan: what one silo does in one round, in public constants only.

One class for each mechanism, told apart by ``mechanism``; nothing in them depends on private data.
"""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Annotated, Literal

from msgspec import Meta

from cachefl_secure.fields import Count, Positive, Strict, Unit
from cachefl_secure.grid_layout import MOST_PAIRS

Part = Annotated[float, Meta(ge=0.0, lt=1.0)]
Weight = Annotated[float, Meta(ge=0.0, le=1000.0)]
Noise = Annotated[float, Meta(gt=0.0, le=1e9)]
Epsilon = Annotated[float, Meta(gt=0.0, le=1e9)]
Order = Annotated[int, Meta(ge=2, le=1024)]
Delta = Annotated[float, Meta(ge=1e-12, le=1e-3)]


class _Steps(Strict, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="mechanism"):
    """Clipped gradient steps on the cache keys. Averaging, and a learning rate fixed here, are post-processing."""

    clip_norm: Positive
    sampling_rate: Unit
    """1.0 is full batch; below, every record is drawn independently (Poisson)."""
    expected_records: Count
    """The public divisor: a declared typical number of records a silo. Never a silo's own count."""
    learning_rate: Positive
    """Length of the step that ``expected_records`` identical clipped gradients would take."""
    rounds: Annotated[int, Meta(ge=1, le=100_000)]
    """Rounds planned; the noise multiplier was calibrated for them."""
    delta: Delta
    """At most a tenth of one over the number of records of any silo; a silo checks that with its own number."""

    @property
    def mechanism(self) -> str:
        """``distributed``, ``local`` or ``none``."""
        return str(self.__struct_config__.tag)

    @property
    def step_length(self) -> float:
        """What a (noised) sum of clipped gradients is multiplied by to become a change of the cache keys."""
        return self.learning_rate / (self.sampling_rate * self.expected_records * self.clip_norm)


class _PrivateSteps(_Steps, frozen=True, forbid_unknown_fields=True, kw_only=True):
    noise_multiplier: Noise
    """Standard deviation of the noise that one silo adds to a clipped sum, in clip norms."""
    epsilon_local: Epsilon
    """Local epsilon of a silo after all planned rounds; also its default cap."""
    rdp_order: Order
    """Order of the Renyi filter that decides once sampled steps of several settings add up in a ledger."""


class DistributedPlan(
    _PrivateSteps, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="distributed"
):
    """One integer step a round; the silos' shares of discrete Gaussian noise add up in the secure sum."""

    epsilon_aggregate: Epsilon
    """Aggregate epsilon after all planned rounds, as long as the secure sum holds; also a silo's default cap."""

    @property
    def steps_per_round(self) -> int:
        """One, and no field: only of one step do the silos' shares of the noise add up."""
        return 1

    @property
    def steps_of_noise(self) -> float:
        return 1.0

    @property
    def replay_weight(self) -> float:
        """None: what leaves is a sum of integers. Everybody could add the public gradient to it, but nobody would
        get the same bits of it as the others: it is made of matrix products.
        """
        return 0.0

    @property
    def proximal(self) -> float:
        """None: there is no second step to pull at."""
        return 0.0


class LocalPlan(_PrivateSteps, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="local"):
    """DP-SGD inside every silo, one or more steps a round, each with all of its noise."""

    steps_per_round: Annotated[int, Meta(ge=1, le=10_000)]
    proximal: Part = 0.0
    """FedProx (Li et al. 2020): before every step of a round but the first, the change so far shrinks by this part."""
    replay_weight: Weight = 0.0
    """Of the synthetic images' own loss in every step, against the records'. Both are means over what is expected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_proximal(self.proximal, self.steps_per_round)

    @property
    def steps_of_noise(self) -> float:
        """How many steps' noise is in an update: fewer than its steps where the pull takes some of it back."""
        # By products, not by powers: libraries round those differently, and the round's encoding follows from it.
        total, kept = 0.0, 1.0
        for _ in range(self.steps_per_round):
            total, kept = total + kept * kept, kept * (1.0 - self.proximal)
        return total

    @property
    def update_noise_std(self) -> float:
        """Standard deviation of the noise in each entry of a silo's update of one round."""
        return self.step_length * self.noise_multiplier * self.clip_norm * math.sqrt(self.steps_of_noise)


class NoPrivacyPlan(_Steps, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="none"):
    """The same steps without noise: no privacy at all."""

    steps_per_round: Annotated[int, Meta(ge=1, le=10_000)]
    proximal: Part = 0.0
    """As in ``LocalPlan``."""
    replay_weight: Weight = 0.0
    """As in ``LocalPlan``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_proximal(self.proximal, self.steps_per_round)

    @property
    def steps_of_noise(self) -> float:
        return 0.0

    @property
    def noise_multiplier(self) -> float:
        return 0.0


def _check_proximal(proximal: float, steps_per_round: int) -> None:
    if proximal > 0.0 and steps_per_round < 2:
        raise ValueError("proximal pulls between the steps of a round, and there is one")


class _OneRelease(Strict, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="mechanism"):
    """One round of noised integer sums, and no training."""

    epsilon_local: Epsilon
    """Local epsilon of a silo after the release; also its default cap."""
    epsilon_aggregate: Epsilon
    """Aggregate epsilon after it, as long as the secure sum holds; also a silo's default cap."""
    rdp_order: Order
    """Order of the Renyi filter that decides once sampled steps of other federations add up in a ledger."""
    expected_records: Count
    """A declared number of records a silo: sums are clamped to what so many can add up to, with ``grid`` sixteen times
    as many. Never a silo's own count."""
    delta: Delta
    """At most a tenth of one over the number of records of any silo; a silo checks that with its own number."""

    @property
    def mechanism(self) -> str:
        """``statistics`` or ``grid``."""
        return str(self.__struct_config__.tag)

    @property
    def rounds(self) -> int:
        """One, and no field: a second release of the same records would be charged like a first, see decision 0036."""
        return 1


class StatisticsPlan(_OneRelease, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="statistics"):
    """One release of noised class sums and Gram matrix, from which everybody solves the same kind of head.

    Cache keys stay as they are. Head, regulariser and gamma say what is made of the sums: post-processing.
    """

    noise_multiplier: Annotated[float, Meta(gt=0.0, le=256.0)]
    """Standard deviation of the noise that one silo adds to each of the two, in norms of one feature."""
    head: Literal["gda", "ridge"]
    regulariser: Positive
    """Of ridge regression, in records; noise adds to it."""
    gamma: Positive
    """How many times as loud as text classifier and cache the head is."""


class GridPlan(_OneRelease, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="grid"):
    """One release of how many records each pair of alpha and beta classifies rightly; the best pair is the cache's after it.

    Cache keys stay as they are. The pairs are public and fixed before any record is looked at.
    """

    noise_multiplier: Annotated[float, Meta(gt=0.0, le=1024.0)]
    """Standard deviation of the noise that one silo adds to each count, in what one record can change all of them by."""
    alphas: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=MOST_PAIRS)]
    """As ``cache.alpha``, rising."""
    betas: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=MOST_PAIRS)]
    """As ``cache.beta``, rising."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("alphas", self.alphas), ("betas", self.betas)):
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be finite")
            if any(low >= high for low, high in pairwise(values)):
                raise ValueError(f"{name} must rise, each once")
        if not 2 <= len(self.alphas) * len(self.betas) <= MOST_PAIRS:
            raise ValueError(f"alphas: with betas they must make 2 to {MOST_PAIRS} pairs")

    @property
    def pairs(self) -> tuple[tuple[float, float], ...]:
        """(alpha, beta) in the order of the counts: all betas of the first alpha come first."""
        return tuple(product(self.alphas, self.betas))


StepsPlan = DistributedPlan | LocalPlan | NoPrivacyPlan
"""Rounds of training."""
ReleasePlan = StatisticsPlan | GridPlan
"""One release."""
PrivacyPlan = StepsPlan | ReleasePlan

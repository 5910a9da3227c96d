"""What every method is given: the same frozen features, splits and start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cachefl_secure.cache.encoder import Encoder
from cachefl_secure.cache.features import FeatureSet


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A data set as features: public start, records that silos will hold, and test records that nothing is chosen on."""

    name: str
    classes: tuple[str, ...]
    text_classifier: Tensor
    """(N, C): of class names, or what stands in for it; ``origin`` says which."""
    logit_scale: float
    public: FeatureSet
    """Of which the first K a class are the cache keys of round 0. Never of private records."""
    keys_per_class: int
    training: FeatureSet
    test: FeatureSet
    origin: str
    """Where classifier and start come from, in words for the table."""
    encoder: Encoder | None = None
    """Only for methods that learn prompts."""
    seeds_of_their_own: bool = False
    """Whether the task itself (its held-out part) is drawn anew for every seed."""

    @property
    def feature_dim(self) -> int:
        return self.text_classifier.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A task cut into silos, by one seed. ``validation`` is taken from the records of training, and no silo has it."""

    task: Task
    partition: str
    """``IID`` or ``Dirichlet(0.1)``."""
    seed: int
    silos: tuple[FeatureSet, ...]
    pooled: FeatureSet
    """The records of all silos, in an order that does not depend on the partition: for centralised methods."""
    validation: FeatureSet

    @property
    def expected_records(self) -> int:
        """The public number that a plan would state: a typical silo's, to two digits."""
        return int(float(f"{max(1, len(self.pooled) / len(self.silos)):.2g}"))


def joined(sets: Sequence[FeatureSet]) -> FeatureSet:
    """All records, in order."""
    return FeatureSet(torch.cat([each.features for each in sets]), torch.cat([each.labels for each in sets]))


def rows(records: FeatureSet, positions: Tensor) -> FeatureSet:
    """Some of the records."""
    return FeatureSet(records.features[positions], records.labels[positions])


def first_of_each_class(records: FeatureSet, count: int) -> FeatureSet:
    """At most ``count`` records of each class, class by class, in their order."""
    labels = sorted(set(records.labels.tolist()))
    return rows(records, torch.cat([(records.labels == each).nonzero().flatten()[:count] for each in labels]))

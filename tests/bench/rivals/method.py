"""What a method is: a function of a cell and a few numbers, which validation records choose; and what it returns."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cachefl_secure.cache.features import FeatureSet
from tests.bench.rivals.metrics import Quality, quality
from tests.bench.rivals.task import Cell, Task

Numbers = Mapping[str, float]
Choices = Sequence[Numbers]
Scores = Callable[[Tensor], Tensor]
"""Features (n, C) to logits (n, N)."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one silo over all rounds."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True)
class Outcome:
    """Trained models: one, or one a silo where nothing is shared. Nobody has looked at a test record yet."""

    models: tuple[Scores, ...]
    traffic: Traffic


class Kind(enum.StrEnum):
    """What a method needs of the silos."""

    REFERENCE = "no training"
    CENTRAL = "central"
    ALONE = "alone"
    MULTI_ROUND = "multi-round"
    ONE_ROUND = "one round"
    OURS = "ours"
    OURS_PRIVATE = "ours, private"

    @property
    def ignores_partition(self) -> bool:
        return self in (Kind.REFERENCE, Kind.CENTRAL)


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    kind: Kind
    run: Callable[..., Outcome]
    """Of a cell, and of the names of one choice."""
    origin: str
    """Where its numbers come from; never from test records."""
    choices: Choices = ({},)
    """Settings to choose from on validation records; a single one is taken as it is."""
    epsilon: str = ""
    needs_text_tower: bool = False
    needs_several_keys: bool = False
    """K > 1; with one key a class it is another method of the table."""

    def suits(self, task: Task) -> bool:
        """Whether the task has what it takes."""
        if self.needs_text_tower and task.encoder is None:
            return False
        return task.keys_per_class > 1 or not self.needs_several_keys


def float32_rounds(trained: Sequence[Tensor], rounds: int, *, start: Tensor | None = None) -> Traffic:
    """What is trained travels both ways in every round; ``start`` is what a silo must be told before, once."""
    numbers = sum(tensor.numel() for tensor in trained)
    return Traffic(4 * rounds * numbers, 4 * (rounds * numbers + (0 if start is None else start.numel())))


@dataclass(frozen=True)
class Trained:
    """What ``train`` made, with which setting, in how many CPU seconds: all silos together."""

    numbers: Numbers
    outcome: Outcome
    seconds: float


def train(method: Method, cell: Cell, numbers: Numbers) -> Trained:
    """Looks at no test record."""
    began = time.process_time()
    outcome = method.run(cell, **numbers)
    return Trained(numbers, outcome, time.process_time() - began)


def choose(method: Method, cell: Cell) -> Trained:
    """With the setting of best top-1 on the validation records; of equal ones that of the least cross-entropy."""
    tried = [train(method, cell, numbers) for numbers in method.choices]
    return min(tried, key=lambda one: _loss(one.outcome, cell.validation))


def _loss(outcome: Outcome, records: FeatureSet) -> tuple[float, float]:
    """Errors and cross-entropy, means over models."""
    errors, surprise = 0.0, 0.0
    with torch.no_grad():
        for model in outcome.models:
            scores = model(records.features)
            errors += float((scores.argmax(dim=1) != records.labels).double().mean())
            surprise += float(cross_entropy(scores, records.labels))
    return errors, surprise


def measured(outcome: Outcome, cell: Cell) -> tuple[Quality, ...]:
    """Reads the test records. Of several models each serves the silo that trained it."""
    test, present = cell.task.test, [records for records in cell.silos if len(records)]
    served = [present] if len(outcome.models) == 1 else [[records] for records in present]
    with torch.no_grad():
        return tuple(
            quality(torch.softmax(model(test.features), dim=1), test.labels, silos)
            for model, silos in zip(outcome.models, served, strict=True)
        )

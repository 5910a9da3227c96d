"""A task's training records over five silos and a validation split, by one seed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tests.bench.rivals.task import Cell, Task, rows

SILOS = 5
VALIDATION_SHARE = 0.15
PARTITIONS = {"IID": None, "Dirichlet(0.1)": 0.1}
"""Concentration of the labels over silos; None is a shuffle."""


def cut(task: Task, partition: str, seed: int) -> Cell:
    """The same seed gives the same validation records in every partition, and the same cut for every method."""
    rng = np.random.default_rng((seed, 7))
    labels = task.training.labels.numpy()
    held, rest = _validation(labels, rng)
    concentration = PARTITIONS[partition]
    parts = _shuffled(rest, rng) if concentration is None else _dirichlet(labels, rest, rng, concentration)
    silos = tuple(rows(task.training, torch.from_numpy(part)) for part in parts)
    pooled, validation = (rows(task.training, torch.from_numpy(part)) for part in (rest, held))
    return Cell(task, partition, seed, silos, pooled, validation)


def _validation(
    labels: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A stratified share, at least one record of each class that has two."""
    held: list[int] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held += members[: min(max(1, round(len(members) * VALIDATION_SHARE)), len(members) - 1)].tolist()
    return np.sort(np.array(held)), np.setdiff1d(np.arange(len(labels)), held)


def _shuffled(records: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    return [np.sort(part) for part in np.array_split(rng.permutation(records), SILOS)]


def _dirichlet(
    labels: NDArray[np.int64], records: NDArray[np.int64], rng: np.random.Generator, concentration: float
) -> list[NDArray[np.int64]]:
    """Shares of each class over the silos (Hsu et al. 2019), not conditioned on anything: a silo may be empty."""
    silos: list[list[int]] = [[] for _ in range(SILOS)]
    for label in np.unique(labels):
        members = rng.permutation(records[labels[records] == label])
        cuts = np.rint(np.cumsum(rng.dirichlet([concentration] * SILOS))[:-1] * len(members)).astype(int)
        for silo, part in zip(silos, np.split(members, cuts), strict=True):
            silo += part.tolist()
    return [np.array(sorted(silo), dtype=np.int64) for silo in silos]

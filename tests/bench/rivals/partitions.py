"""A task's training records over five silos and a validation split, by one seed."""

from __future__ import annotations

import torch

from cachefl_secure.datasets.partition import draw_partition
from tests.bench.rivals.task import Cell, Task, rows

SILOS = 5
VALIDATION_SHARE = 0.15
PARTITIONS = {"IID": "iid", "Dirichlet(0.1)": "dirichlet:0.1"}
"""Names in the table, and the product's schemes. No draw is repeated: a silo may have few records or none."""


def cut(task: Task, partition: str, seed: int) -> Cell:
    """The same seed gives the same validation records in every partition, and the same cut for every method."""
    drawn = draw_partition(
        task.training.labels.numpy(), PARTITIONS[partition], SILOS, seed, held_out_share=VALIDATION_SHARE
    )
    silos = tuple(rows(task.training, torch.tensor(held, dtype=torch.int64)) for held in drawn.silos.values())
    rest = torch.tensor(sorted(index for held in drawn.silos.values() for index in held))
    validation = rows(task.training, torch.tensor(drawn.held_out))
    return Cell(task, partition, seed, silos, rows(task.training, rest), validation)

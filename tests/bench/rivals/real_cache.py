"""A federated cache without a synthetic start: its keys are features of the silos' own records.

NOT PRIVATE: a key is a private feature, published before training has begun. Trained as Tip-Adapter-F, averaged over silos.
"""

from __future__ import annotations

from tests.bench.rivals.federated import ROUNDS
from tests.bench.rivals.method import Outcome, Traffic
from tests.bench.rivals.task import Cell, first_of_each_class, joined
from tests.bench.rivals.tip_adapter import SHOTS, outcome, train_keys


def run(cell: Cell) -> Outcome:
    """Every silo gives an equal part of 16 keys a class, of the classes it has."""
    share = max(1, SHOTS // len(cell.silos))
    given = [first_of_each_class(records, share) for records in cell.silos if len(records)]
    start = joined(given)
    keys = train_keys(cell, start, cell.silos)
    most = max(map(len, given)) * cell.task.feature_dim
    traffic = Traffic(4 * (ROUNDS * keys.numel() + most), 4 * (ROUNDS + 1) * keys.numel())
    return outcome(cell, start, keys, traffic)

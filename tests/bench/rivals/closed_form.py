"""One-round closed forms: the silos add up class sums and a Gram matrix, and everybody solves for the head.

Fed3R (Fani et al. 2024) and GDA (Wang et al. 2024), by the product's own code. The sums, and so the head, are the same for
every partition.
"""

from __future__ import annotations

from torch import Tensor

from cachefl_secure.cache.class_statistics import added, statistics_of_records
from cachefl_secure.cache.closed_form import HeadKind, LinearHead, solve_head
from tests.bench.rivals.method import Outcome, Traffic
from tests.bench.rivals.task import Cell

GAMMAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""What a head's scores are multiplied by beside the text's logits."""


def run(cell: Cell, kind: HeadKind) -> Outcome:
    """logits = scale * f W^T + gamma * (f G^T + b), gamma by validation; ridge's scores have no scale of their own."""
    classes = len(cell.task.classes)
    head = solve_head(kind, added([statistics_of_records(records, classes) for records in cell.silos]))
    gamma = search(cell, head)
    return Outcome((lambda features: scores(cell, head, gamma, features),), traffic(cell))


def scores(cell: Cell, head: LinearHead, gamma: float, features: Tensor) -> Tensor:
    """Logits (b, N) by the formula above."""
    return cell.task.logit_scale * features @ cell.task.text_classifier.T + gamma * head.scores(features)


def search(cell: Cell, head: LinearHead) -> float:
    """The gamma with the best top-1 on the validation records, the smaller of equal ones."""
    records = cell.validation

    def hits(gamma: float) -> float:
        predicted = scores(cell, head, gamma, records.features).argmax(dim=1)
        return float((predicted == records.labels).double().mean())

    return max(GAMMAS, key=hits)


def traffic(cell: Cell) -> Traffic:
    """float32: N * C sums and the upper triangle of the Gram matrix once up, and the solved head down."""
    classes, dim = len(cell.task.classes), cell.task.feature_dim
    return Traffic(
        4 * (classes * dim + dim * (dim + 1) // 2),
        4 * (cell.task.text_classifier.numel() + classes * (dim + 1)),
    )

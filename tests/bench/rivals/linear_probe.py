"""Federated linear probe: one weight vector a class, started at the text classifier (zero-shot weights)."""

from __future__ import annotations

from torch import Tensor

from tests.bench.rivals.federated import ROUNDS, Parameters, Training, adamw, federated_averaging
from tests.bench.rivals.method import Choices, Outcome, float32_rounds
from tests.bench.rivals.task import Cell

GRID: Choices = (
    *({"learning_rate": rate} for rate in (1e-3, 3e-3, 1e-2)),
    {"learning_rate": 1e-3, "rounds": 100, "batch": 10**9},
)
"""The last is five times as many rounds of one step, as CacheFL may take too."""


def run(cell: Cell, learning_rate: float, rounds: int = ROUNDS, batch: int = 32) -> Outcome:
    """logits = scale * f W^T, W trained by AdamW in every silo. No bias, as zero-shot has none."""
    scale, text = cell.task.logit_scale, cell.task.text_classifier

    def logits(parameters: Parameters, features: Tensor) -> Tensor:
        return scale * features @ parameters[0].T

    training = Training(adamw, learning_rate, rounds=rounds, batch=batch)
    weights = federated_averaging(logits, (text,), cell.silos, training, cell.seed)
    traffic = float32_rounds(weights, training.rounds, start=text)
    return Outcome((lambda features: logits(weights, features),), traffic)

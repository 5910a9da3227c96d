"""FedCLIP (Lu et al. 2023): an attention adapter on the image feature, averaged over silos.

    f' = normalise(f * softmax(V tanh(U f + u) + v)),  logits = scale * f' W^T

U, V (C, C). Cross-entropy over class names takes the place of the contrastive loss of the published code, which counts
two records of one class in a batch as each other's negatives. Weighted by records, where that code counts silos alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from tests.bench.rivals.federated import Parameters, Training, federated_averaging
from tests.bench.rivals.method import Choices, Outcome, float32_rounds
from tests.bench.rivals.task import Cell

GRID: Choices = tuple({"learning_rate": rate} for rate in (5e-5, 5e-3))
"""The first is the published one, for 300 rounds."""


def run(cell: Cell, learning_rate: float) -> Outcome:
    """Adam with betas (0.9, 0.98), eps 1e-6 and weight decay 0.2, as published."""
    task = cell.task

    def logits(parameters: Parameters, features: Tensor) -> Tensor:
        return task.logit_scale * adapted(parameters, features) @ task.text_classifier.T

    training = Training(_adam, learning_rate)
    start = _start(task.feature_dim, cell.seed)
    adapter = federated_averaging(logits, start, cell.silos, training, cell.seed)
    traffic = float32_rounds(adapter, training.rounds, start=task.text_classifier)
    return Outcome((lambda features: logits(adapter, features),), traffic)


def adapted(parameters: Parameters, features: Tensor) -> Tensor:
    """(b, C): features weighted by their own attention, of unit norm again."""
    first, first_bias, second, second_bias = parameters
    attention = torch.softmax(
        linear(torch.tanh(linear(features, first, first_bias)), second, second_bias), dim=1
    )
    return normalize(features * attention, dim=1)


def _start(dim: int, seed: int) -> Parameters:
    """torch's own initialisation of linear layers, uniform within 1 / sqrt(C), from a seed."""
    generator, bound = torch.Generator().manual_seed(seed), 1 / math.sqrt(dim)
    shapes = ((dim, dim), (dim,), (dim, dim), (dim,))
    return tuple((2 * torch.rand(shape, generator=generator) - 1) * bound for shape in shapes)


def _adam(parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)

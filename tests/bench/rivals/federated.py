"""Federated averaging (McMahan et al. 2017) of any model given by its loss: the loop of the multi-round rivals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cachefl_secure.cache.features import FeatureSet

Parameters = tuple[Tensor, ...]
Logits = Callable[[Parameters, Tensor], Tensor]
"""Parameters and features (b, C) to logits (b, N), differentiable in the former."""
Optimiser = Callable[[list[Tensor], float], torch.optim.Optimizer]
"""Parameters and learning rate; made anew in every round, as silos keep nothing between rounds."""

ROUNDS = 20


@dataclass(frozen=True)
class Training:
    """How each silo trains; the learning rate falls along half a cosine over all rounds."""

    optimiser: Optimiser
    learning_rate: float
    rounds: int = ROUNDS
    epochs: int = 1
    batch: int = 32
    uniform: bool = False
    """Silos count alike, not by their records."""


def average(parts: Sequence[Parameters], weights: Sequence[float]) -> Parameters:
    """The weighted mean of every tensor. Weights need not add up to one."""
    total = sum(weights)
    return tuple(
        torch.stack([weight / total * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(
            dim=0
        )
        for tensors in zip(*parts, strict=True)
    )


def federated_averaging(
    logits: Logits, start: Parameters, silos: Sequence[FeatureSet], training: Training, seed: int
) -> Parameters:
    """The parameters after all rounds. Silos without records take no part.

    Every silo starts each round from the same parameters and returns tensors of its own: published code that kept
    references to one model averaged the last silo with itself.
    """
    present = [records for records in silos if len(records)]
    weights = [1.0 if training.uniform else float(len(records)) for records in present]
    generator, parameters = torch.Generator().manual_seed(seed), start
    for number in range(training.rounds):
        rate = training.learning_rate * (1 + math.cos(math.pi * number / training.rounds)) / 2
        trained = [train(logits, parameters, records, training, rate, generator) for records in present]
        parameters = average(trained, weights)
    return parameters


def train(
    logits: Logits,
    start: Parameters,
    records: FeatureSet,
    training: Training,
    rate: float,
    generator: torch.Generator,
) -> Parameters:
    """One silo's parameters after its epochs of cross-entropy in shuffled batches. ``start`` is left as it was."""
    parameters = [tensor.clone().requires_grad_() for tensor in start]
    optimiser = training.optimiser(parameters, rate)
    for _ in range(training.epochs):
        for batch in torch.split(torch.randperm(len(records), generator=generator), training.batch):
            optimiser.zero_grad()
            scores = logits(tuple(parameters), records.features[batch])
            functional.cross_entropy(scores, records.labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return tuple(parameter.detach() for parameter in parameters)


def sgd(parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
    """With momentum 0.9, as CoOp's trainers have it."""
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def adamw(parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
    """As Tip-Adapter-F (Zhang et al. 2022); torch's weight decay of 0.01."""
    return torch.optim.AdamW(parameters, lr=rate)

"""Averaging averages, silos do not write into each other, and one silo is the centralised method."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cachefl_secure.cache.encoder import load_encoder
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.embedded import CLASSES, CLIP_DIR, TEMPLATES
from tests.bench.rivals import fedclip
from tests.bench.rivals.federated import Parameters, Training, average, federated_averaging, sgd, train
from tests.bench.rivals.promptfl import PromptTower
from tests.small_federation import random_features

RATE = 0.05


def plain(parameters: list[Tensor], rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate)


def linear(parameters: Parameters, features: Tensor) -> Tensor:
    return 10 * features @ parameters[0].T


START = (torch.zeros(4, 16),)


def test_silos_that_add_10_to_40_average_to_25() -> None:
    # Published code that keeps references to one model gives 40 here.
    parts = [(torch.full((2, 2), 10.0 * k), torch.tensor([1.0 * k])) for k in (1, 2, 3, 4)]
    matrix, vector = average(parts, [1, 1, 1, 1])
    assert torch.equal(matrix, torch.full((2, 2), 25.0))
    assert torch.equal(vector, torch.tensor([2.5]))


def test_silos_count_by_their_records() -> None:
    (mean,) = average([(torch.tensor(0.0),), (torch.tensor(1.0),)], [30, 10])
    assert float(mean) == 0.25


def test_one_round_is_the_weighted_mean_of_what_silos_train_by_themselves() -> None:
    silos = [random_features(30, seed=1), random_features(10, seed=2)]
    training = Training(plain, RATE, rounds=1, batch=64)
    (together,) = federated_averaging(linear, START, silos, training, seed=0)
    generator = torch.Generator()
    alone = [train(linear, START, records, training, RATE, generator)[0] for records in silos]
    torch.testing.assert_close(together, 0.75 * alone[0] + 0.25 * alone[1])
    assert float((alone[0] - alone[1]).abs().max()) > 1e-3
    assert torch.equal(START[0], torch.zeros(4, 16)), "a silo wrote into the common start"


def test_a_silo_without_records_changes_nothing() -> None:
    silos, nobody = [random_features(30, seed=1), random_features(10, seed=2)], random_features(0, seed=3)
    training = Training(plain, RATE, rounds=3, batch=64)
    (without,) = federated_averaging(linear, START, silos, training, seed=0)
    (with_nobody,) = federated_averaging(linear, START, [*silos, nobody], training, seed=0)
    assert torch.equal(without, with_nobody)


def centralised(tower: PromptTower, start: Tensor, records: FeatureSet, rounds: int, rate: float) -> Tensor:
    """Prompt learning in one place, written out: full batches, momentum anew in every round, half a cosine."""
    vectors = start.clone()
    for number in range(rounds):
        leaf = vectors.clone().requires_grad_()
        scores = 13.0 * records.features @ tower.classifier(leaf).T
        (gradient,) = torch.autograd.grad(cross_entropy(scores, records.labels), leaf)
        vectors = vectors - rate * (1 + math.cos(math.pi * number / rounds)) / 2 * gradient
    return vectors


def test_promptfl_with_one_silo_is_prompt_learning_in_one_place() -> None:
    encoder = load_encoder("embedded", local_dir=CLIP_DIR)
    tower = PromptTower.of(encoder, CLASSES)
    text = tower.classifier(torch.zeros(tower.tokens, tower.width)).detach()
    records = FeatureSet(text.clone(), torch.arange(len(CLASSES)).roll(1))  # wrong labels: much to learn
    start = 0.02 * torch.randn(tower.tokens, tower.width, generator=torch.Generator().manual_seed(1))

    def logits(parameters: Parameters, features: Tensor) -> Tensor:
        return 13.0 * features @ tower.classifier(parameters[0]).T

    training = Training(sgd, 0.5, rounds=4, batch=64)
    (one_silo,) = federated_averaging(logits, (start,), [records], training, seed=0)
    central = centralised(tower, start, records, 4, 0.5)
    torch.testing.assert_close(one_silo, central, rtol=1e-4, atol=1e-5)
    assert float((one_silo - start).abs().max()) > 1e-3


def test_the_prompt_tower_is_the_encoders_own_text_tower() -> None:
    encoder = load_encoder("embedded", local_dir=CLIP_DIR)
    tower = PromptTower.of(encoder, CLASSES)
    words = " ".join(["x"] * tower.tokens)
    tokens = encoder._tokenize()([words])[0, 1 : 1 + tower.tokens]
    vectors = encoder._model.token_embedding(tokens).detach()
    expected = encoder.encode_text([f"{words} {name}." for name in CLASSES])
    torch.testing.assert_close(tower.classifier(vectors), expected, rtol=1e-5, atol=1e-5)
    assert tower.tokens == 12, "16 do not fit into the tiny tower's 16 tokens"
    assert len(TEMPLATES) > 0


def test_the_fedclip_adapter_is_its_formula() -> None:
    features = random_features(5, seed=4).features
    first, first_bias, second, second_bias = parameters = fedclip._start(16, seed=2)
    got = fedclip.adapted(parameters, features)
    for row, feature in zip(got, features, strict=True):
        hidden = torch.tanh(first @ feature + first_bias)
        scores = second @ hidden + second_bias
        attention = torch.exp(scores) / torch.exp(scores).sum()
        weighted = feature * attention
        torch.testing.assert_close(row, weighted / weighted.norm(), rtol=1e-5, atol=1e-6)


def test_training_lowers_the_loss() -> None:
    records = random_features(60, seed=6)
    loss = partial(cross_entropy, target=records.labels)
    (trained,) = federated_averaging(linear, START, [records], Training(sgd, RATE, rounds=5), seed=0)
    assert (
        float(loss(linear((trained,), records.features)))
        < float(loss(linear(START, records.features))) - 0.01
    )
    assert float(loss(linear(START, records.features))) == pytest.approx(math.log(4))

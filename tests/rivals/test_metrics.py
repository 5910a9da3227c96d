"""The figures of the table against scikit-learn and against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from cachefl_secure.cache.evaluate import evaluate, predict
from cachefl_secure.cache.features import FeatureSet
from tests.bench.rivals.metrics import calibration_error, confusion, quality, recall, worst_silo
from tests.small_federation import random_cache, random_features


def labelled(*labels: int) -> FeatureSet:
    features = torch.zeros(len(labels), 3)
    features[:, 0] = 1.0
    return FeatureSet(features, torch.tensor(labels, dtype=torch.int64))


def test_top1_and_macro_f1_are_scikit_learns_and_the_products() -> None:
    model, records = random_cache(), random_features(200, seed=3)
    probabilities = predict(model, records.features)
    ours = quality(probabilities, records.labels, [records])
    predicted = probabilities.argmax(dim=1).numpy()
    assert ours.top1 == pytest.approx(accuracy_score(records.labels.numpy(), predicted))
    assert ours.macro_f1 == pytest.approx(f1_score(records.labels.numpy(), predicted, average="macro"))
    product = evaluate(model, records)
    assert (ours.top1, ours.macro_f1) == pytest.approx((product.top1, product.macro_f1))
    assert 0 < ours.top1 < 1


def test_a_class_that_nobody_has_or_predicts_is_left_out_of_macro_f1() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])
    found = quality(probabilities, torch.tensor([0, 1, 1]), [labelled(0, 1)])
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_the_worst_silo_is_weighted_by_its_own_classes() -> None:
    # Recalls: class 0 all of 2, class 1 one of 4, class 2 none of the test records.
    labels, predicted = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 0, 1, 0, 0, 0])
    recalls = recall(confusion(predicted, labels, 3))
    assert recalls[:2].tolist() == [1.0, 0.25]
    assert math.isnan(float(recalls[2]))
    assert worst_silo(recalls, [labelled(0, 0, 0), labelled(0, 1)]) == pytest.approx(0.625)
    # A class without test records does not count, a silo without records is no silo.
    assert worst_silo(recalls, [labelled(0, 2, 2), labelled()]) == 1.0


def test_calibration_error_of_cases_worked_out_by_hand() -> None:
    sure_and_right = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert calibration_error(sure_and_right, torch.tensor([0, 1])) == pytest.approx(0.0)
    assert calibration_error(sure_and_right, torch.tensor([1, 0])) == pytest.approx(1.0)
    # Four records at 0.75, three right: calibrated. One more at 0.95, wrong: |0 - 0.95| / 5.
    probabilities = torch.tensor([[0.75, 0.25]] * 4 + [[0.95, 0.05]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert calibration_error(probabilities, labels) == pytest.approx(0.95 / 5, abs=1e-6)


def test_calibration_error_is_the_plain_sum_over_bins() -> None:
    generator = torch.Generator().manual_seed(5)
    scores = torch.softmax(3 * torch.randn(400, 5, generator=generator), dim=1)
    labels = torch.randint(0, 5, (400,), generator=generator)
    total = 0.0
    for place in range(15):
        members = [
            (float(row.max()), int(row.argmax()) == int(label))
            for row, label in zip(scores, labels, strict=True)
            if place / 15 < float(row.max()) <= (place + 1) / 15
        ]
        if members:
            confidence = sum(sure for sure, _ in members) / len(members)
            total += len(members) / 400 * abs(sum(hit for _, hit in members) / len(members) - confidence)
    assert calibration_error(scores, labels) == pytest.approx(total, abs=1e-6)

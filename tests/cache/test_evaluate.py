"""Accuracy against scikit-learn and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from cachefl_secure.cache.evaluate import evaluate, predict, zero_shot
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel, logits


def random_model(classes: int, dim: int) -> CacheModel:
    generator = torch.Generator().manual_seed(2)
    rows = torch.nn.functional.normalize(torch.randn(3 * classes, dim, generator=generator), dim=1)
    labels = torch.arange(classes).repeat_interleave(2)
    return CacheModel(rows[: 2 * classes], labels, rows[2 * classes :], 8.0, 4.0, 10.0)


def random_records(count: int, labels_below: int, dim: int) -> FeatureSet:
    generator = torch.Generator().manual_seed(3)
    features = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)
    return FeatureSet(features, torch.randint(0, labels_below, (count,), generator=generator))


@pytest.mark.parametrize("labels_below", [6, 4])
def test_figures_agree_with_scikit_learn_also_when_classes_are_absent(labels_below: int) -> None:
    model, records = random_model(6, 4), random_records(2500, labels_below, 4)
    predicted = logits(model, records.features).argmax(dim=1)
    result = evaluate(model, records)
    assert result.records == 2500
    assert result.top1 == pytest.approx(accuracy_score(records.labels, predicted), abs=1e-12)
    assert result.macro_f1 == pytest.approx(f1_score(records.labels, predicted, average="macro"), abs=1e-12)
    for label, recall in enumerate(result.per_class):
        of_class = records.labels == label
        if label < labels_below:
            assert recall == pytest.approx(float((predicted[of_class] == label).double().mean()), abs=1e-12)
        else:
            assert math.isnan(recall)


def test_zero_shot_is_the_text_classifier_alone() -> None:
    model, records = random_model(5, 8), random_records(400, 5, 8)
    text_only = (records.features @ model.text_classifier.T).argmax(dim=1)
    assert zero_shot(model, records).top1 == float((text_only == records.labels).double().mean())
    assert zero_shot(model, records).top1 != evaluate(model, records).top1


def test_no_records_give_no_figures_but_no_failure() -> None:
    result = evaluate(random_model(3, 4), FeatureSet(torch.empty(0, 4), torch.empty(0, dtype=torch.int64)))
    assert result.records == 0
    assert all(math.isnan(value) for value in (result.top1, result.macro_f1, *result.per_class))


def test_probabilities_sum_to_one_and_do_not_depend_on_chunks() -> None:
    model, records = random_model(5, 8), random_records(1500, 5, 8)
    probabilities = predict(model, records.features)
    assert probabilities.shape == (1500, 5)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1500))
    torch.testing.assert_close(probabilities[1400:], predict(model, records.features[1400:]))


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="below 3"):
        evaluate(random_model(3, 4), random_records(50, 4, 4))

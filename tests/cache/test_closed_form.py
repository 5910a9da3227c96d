"""Heads from class sums and Gram matrix: the same however records are dealt out, and as slow formulas over records say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from cachefl_secure.cache.class_statistics import (
    ClassStatistics,
    added,
    record_counts,
    statistics_of_records,
)
from cachefl_secure.cache.closed_form import (
    HeadKind,
    LinearHead,
    as_loud_as,
    class_prototypes,
    fused,
    gda_head,
    ridge_head,
    solve_head,
)
from cachefl_secure.cache.features import FeatureSet

CLASSES, DIM = 12, 32


def means_of_classes() -> Tensor:
    """In a cone, as CLIP's."""
    generator = torch.Generator().manual_seed(0)
    cone = normalize(torch.randn(DIM, generator=generator), dim=0)
    return cone + 0.5 * normalize(torch.randn(CLASSES, DIM, generator=generator), dim=1)


def records_of(count: int, seed: int = 1, labels_below: int = CLASSES) -> FeatureSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, labels_below, (count,), generator=generator)
    scattered = means_of_classes()[labels] + 0.12 * torch.randn(count, DIM, generator=generator)
    return FeatureSet(normalize(scattered, dim=1), labels)


def noised(statistics: ClassStatistics, noise_std: float, seed: int = 5) -> ClassStatistics:
    rng = np.random.default_rng(seed)
    triangle = np.triu(rng.normal(size=(DIM, DIM))) * noise_std
    gram = statistics.gram + triangle + np.triu(triangle, 1).T
    sums = statistics.class_sums + rng.normal(size=(CLASSES, DIM)) * noise_std
    return ClassStatistics(sums, gram, noise_std)


def accuracy(head: LinearHead, records: FeatureSet) -> float:
    return float((head.scores(records.features).argmax(dim=1) == records.labels).float().mean())


def slow_statistics(records: FeatureSet) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sums, gram = np.zeros((CLASSES, DIM)), np.zeros((DIM, DIM))
    for feature, label in zip(records.features.double().numpy(), records.labels.tolist(), strict=True):
        sums[label] += feature
        gram += np.outer(feature, feature)
    return sums, gram


def split(records: FeatureSet, kind: str) -> list[FeatureSet]:
    generator = torch.Generator().manual_seed(9)
    if kind == "by class":
        owner = records.labels % 4
    elif kind == "all at one":
        owner = torch.full_like(records.labels, 2)
    elif kind == "one each":
        owner = torch.arange(len(records))
    else:
        owner = torch.randint(0, 4, (len(records),), generator=generator)
    silos = range(max(4, int(owner.max()) + 1))
    return [FeatureSet(records.features[owner == i], records.labels[owner == i]) for i in silos]


@pytest.mark.parametrize("kind", ["at random", "by class", "all at one", "one each"])
@pytest.mark.parametrize("head", list(HeadKind))
def test_a_head_is_the_same_however_the_records_are_dealt_out(kind: str, head: HeadKind) -> None:
    records = records_of(400)
    parts = [statistics_of_records(part, CLASSES) for part in split(records, kind)]
    pooled = solve_head(head, statistics_of_records(records, CLASSES))
    dealt = solve_head(head, added(parts))
    assert (dealt.weight - pooled.weight).norm() <= 1e-5 * pooled.weight.norm()
    assert (dealt.bias - pooled.bias).norm() <= 1e-5 * max(float(pooled.bias.norm()), 1e-9)


def test_sums_are_those_of_a_loop_over_records() -> None:
    records = records_of(300)
    sums, gram = slow_statistics(records)
    statistics = statistics_of_records(records, CLASSES, with_counts=True)
    assert np.allclose(statistics.class_sums, sums, rtol=0, atol=1e-10)
    assert np.allclose(statistics.gram, gram, rtol=0, atol=1e-10)
    assert statistics.counts is not None
    assert statistics.counts.tolist() == [records.labels.tolist().count(c) for c in range(CLASSES)]


def test_ridge_is_the_minimum_of_its_loss() -> None:
    """Found by gradient descent over records, without any solver."""
    records, regulariser = records_of(300), 5.0
    features, one_hot = records.features.double(), torch.eye(CLASSES, dtype=torch.float64)[records.labels]
    weight = torch.zeros(CLASSES, DIM, dtype=torch.float64)
    step = 1.0 / (float(torch.linalg.matrix_norm(features.T @ features, 2)) + regulariser)
    for _ in range(4000):
        weight -= step * ((features @ weight.T - one_hot).T @ features + regulariser * weight)
    ours = ridge_head(statistics_of_records(records, CLASSES), regulariser)
    assert (ours.weight - weight).norm() <= 1e-5 * weight.norm()
    assert not ours.bias.any()


def test_gda_is_the_papers_up_to_its_scale_and_the_middle_of_all_records() -> None:
    """Wang et al. (2024), over records: C pinv((n - 1) S + tr(S) I), W = mu P, b = -mu P mu^T / 2."""
    records = records_of(300)
    features, n = records.features.double().numpy(), len(records)
    means = np.stack([features[records.labels.numpy() == c].mean(axis=0) for c in range(CLASSES)])
    centred = features - means[records.labels.numpy()]
    covariance = centred.T @ centred / (n - 1)
    precision = DIM * np.linalg.pinv((n - 1) * covariance + np.trace(covariance) * np.eye(DIM))
    weight, bias = means @ precision, -0.5 * np.einsum("nc,cd,nd->n", means, precision, means)
    scores = features @ weight.T + bias
    head = gda_head(statistics_of_records(records, CLASSES, with_counts=True))
    ours = head.scores(records.features).double().numpy()
    expected = (scores - scores.mean(axis=1, keepdims=True)) * (n - 1) / DIM
    centred_ours = ours - ours.mean(axis=1, keepdims=True)
    assert np.abs(centred_ours - expected).max() <= 1e-4 * np.abs(expected).max()


def test_counts_that_nobody_released_follow_from_the_sums() -> None:
    statistics = statistics_of_records(records_of(600), CLASSES, with_counts=True)
    derived = record_counts(ClassStatistics(statistics.class_sums, statistics.gram))
    assert statistics.counts is not None
    assert np.abs(derived - statistics.counts).max() < 2.5
    assert derived.sum() == pytest.approx(600, abs=1e-3)


def test_gda_without_counts_classifies_as_well_as_with() -> None:
    with_counts = gda_head(statistics_of_records(records_of(600), CLASSES, with_counts=True))
    without = gda_head(statistics_of_records(records_of(600), CLASSES))
    test = records_of(2000, seed=2)
    assert accuracy(without, test) > 0.95
    assert accuracy(without, test) == pytest.approx(accuracy(with_counts, test), abs=0.01)


@pytest.mark.parametrize("head", list(HeadKind))
def test_a_class_without_records_scores_zero_and_leaves_the_others_alone(head: HeadKind) -> None:
    records = records_of(300, labels_below=CLASSES - 2)
    solved = solve_head(head, statistics_of_records(records, CLASSES))
    assert not solved.scores(records.features)[:, CLASSES - 2 :].any()
    fewer = solve_head(head, statistics_of_records(records, CLASSES - 2))
    assert torch.allclose(solved.weight[: CLASSES - 2], fewer.weight, atol=1e-4)


def test_prototypes_stand_in_for_a_class_without_records() -> None:
    records, unseen = records_of(300, labels_below=CLASSES - 1), CLASSES - 1
    head = gda_head(statistics_of_records(records, CLASSES), normalize(means_of_classes(), dim=1))
    test = records_of(2000, seed=2)
    of_class = FeatureSet(test.features[test.labels == unseen], test.labels[test.labels == unseen])
    assert accuracy(head, of_class) > 0.5


@pytest.mark.parametrize("head", list(HeadKind))
@pytest.mark.parametrize("count", [0, 1, 2])
def test_next_to_no_records_give_a_finite_head(head: HeadKind, count: int) -> None:
    solved = solve_head(head, statistics_of_records(records_of(count), CLASSES))
    assert torch.isfinite(solved.scores(records_of(9).features)).all()
    if count == 0:
        assert not solved.weight.any()


@pytest.mark.parametrize("head", list(HeadKind))
def test_a_gram_matrix_that_noise_made_indefinite_still_gives_a_head(head: HeadKind) -> None:
    statistics = noised(statistics_of_records(records_of(400), CLASSES), 1.0)
    assert np.linalg.eigvalsh(statistics.gram)[0] < 0
    solved = solve_head(head, statistics)
    assert accuracy(solved, records_of(2000, seed=2)) > 0.6


def test_noise_that_covers_everything_leaves_the_prototypes() -> None:
    prototypes = normalize(means_of_classes(), dim=1)
    test = records_of(2000, seed=2)
    alone = accuracy(LinearHead(prototypes, torch.zeros(CLASSES)), test)
    statistics = statistics_of_records(records_of(400), CLASSES)
    figures = [
        (
            accuracy(gda_head(noised(statistics, std, seed)), test),
            accuracy(gda_head(noised(statistics, std, seed), prototypes), test),
        )
        for std in (4.0, 16.0)
        for seed in range(4)
    ]
    without, drawn = np.mean(figures, axis=0)
    assert drawn > without + 0.1
    assert drawn > alone / 2


def test_prototypes_are_mean_keys_and_a_class_without_one_takes_its_text_moved_to_where_keys_are() -> None:
    keys, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 0, 2])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    moved = text[1] + keys.mean(dim=0) - text.mean(dim=0)
    expected = torch.stack([torch.tensor([0.5, 0.5]), moved, keys[2]])
    assert torch.allclose(class_prototypes(keys, labels, text), expected)


def test_fused_logits_add_gamma_times_the_heads_scores() -> None:
    records = records_of(5)
    head = LinearHead(torch.randn(CLASSES, DIM), torch.randn(CLASSES))
    given = torch.randn(5, CLASSES)
    by_hand = given + 3.0 * (records.features @ head.weight.T + head.bias)
    assert torch.allclose(fused(given, head, records.features, 3.0), by_hand, atol=1e-5)


def test_a_head_is_made_as_loud_as_the_logits_beside_it_and_classifies_as_before() -> None:
    records = records_of(50)
    head = gda_head(statistics_of_records(records, CLASSES))
    beside = 7.0 * torch.randn(50, CLASSES) + torch.randn(50, 1)
    loud = as_loud_as(head, beside, records.features)
    spreads = [
        torch.stack([row - row.mean() for row in scores]).square().mean().sqrt()
        for scores in (loud.scores(records.features), beside)
    ]
    assert float(spreads[0]) == pytest.approx(float(spreads[1]), rel=1e-4)
    assert torch.equal(
        loud.scores(records.features).argmax(dim=1), head.scores(records.features).argmax(dim=1)
    )
    nothing = LinearHead(torch.zeros(CLASSES, DIM), torch.zeros(CLASSES))
    assert not as_loud_as(nothing, beside, records.features).weight.any()


def test_what_is_none_is_refused() -> None:
    good = statistics_of_records(records_of(9), CLASSES)
    with pytest.raises(ValueError, match="positive"):
        ridge_head(good, 0.0)
    with pytest.raises(ValueError, match="not below"):
        statistics_of_records(records_of(300), CLASSES - 3)
    with pytest.raises(ValueError, match="Gram"):
        ClassStatistics(good.class_sums, good.gram[:4, :4])
    with pytest.raises(ValueError, match="symmetric"):
        ClassStatistics(good.class_sums, np.triu(good.gram))
    with pytest.raises(ValueError, match="finite"):
        ClassStatistics(good.class_sums * np.nan, good.gram)
    with pytest.raises(ValueError, match="noise_std"):
        ClassStatistics(good.class_sums, good.gram, float("nan"))


def test_classes_whose_noised_sums_are_the_same_have_as_many_records_each() -> None:
    """What nobody's noise would give and a coordinator may publish."""
    row = np.linspace(-1.0, 1.0, 8)
    counts = record_counts(ClassStatistics(np.stack([row] * 4), np.eye(8) * 3.0, noise_std=1.0))
    assert np.allclose(counts, 24.0 / 4)

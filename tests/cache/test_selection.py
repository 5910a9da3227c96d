"""Which candidates become cache keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.selection import NEAR_DUPLICATE, select

CLASSIFIER = torch.eye(4, 8)


def candidates(rows: Sequence[Sequence[float]], labels: Sequence[int]) -> FeatureSet:
    return FeatureSet(
        functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1), torch.tensor(labels)
    )


def random_candidates(number: int, seed: int = 0) -> FeatureSet:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(number, 8, generator=generator)
    return FeatureSet(functional.normalize(rows, dim=1), torch.arange(number) % 4)


def decisions(given: FeatureSet, per_class: int, blank: Sequence[int] = ()) -> list[str]:
    files = [f"{row}.png" for row in range(len(given))]
    verdicts = select(given, CLASSIFIER, files, [row in blank for row in range(len(given))], per_class)
    return [verdict.decision for verdict in verdicts]


def slow_order(features: Tensor, label: int) -> tuple[float, float, int]:
    """Margin, cosine and zero-shot place of one feature, from their definitions."""
    cosines = [
        float(sum(a * b for a, b in zip(features.tolist(), row, strict=True))) for row in CLASSIFIER.tolist()
    ]
    others = [cosine for other, cosine in enumerate(cosines) if other != label]
    return cosines[label] - max(others), cosines[label], 1 + sum(c > cosines[label] for c in others)


def test_scores_are_what_they_are_defined_to_be_and_the_best_are_kept() -> None:
    given = random_candidates(48)
    verdicts = select(given, CLASSIFIER, [""] * 48, [False] * 48, 3)
    for row, verdict in enumerate(verdicts):
        margin, cosine, rank = slow_order(given.features[row], int(given.labels[row]))
        assert (verdict.margin, verdict.cosine) == pytest.approx((margin, cosine), abs=2e-6)
        assert verdict.rank == rank
    for label in range(4):
        mine = [v for v, own in zip(verdicts, given.labels.tolist(), strict=True) if own == label]
        kept = [(v.rank > 2, -v.margin) for v in mine if v.decision == "kept"]
        outdone = [(v.rank > 2, -v.margin) for v in mine if v.decision == "rejected: margin"]
        assert len(kept) == 3
        assert max(kept) <= min(outdone)


def test_a_picture_read_among_the_first_goes_before_one_of_a_better_margin() -> None:
    # Second place but far behind the first; third place, all near each other.
    given = candidates([[0.4, 1.0, 0, 0, 0, 0, 0, 0], [0.4, 0.5, 0.5, 0, 1.0, 0, 0, 0]], [0, 0])
    margins = [slow_order(given.features[row], 0) for row in range(2)]
    assert margins[0][0] < margins[1][0]
    assert [margins[0][2], margins[1][2]] == [2, 3]
    assert decisions(given, 1) == ["kept", "rejected: margin"]


def test_where_the_encoder_reads_nothing_pictures_are_kept_all_the_same() -> None:
    rows = [[0.0, 1, 0, 0, 0.1 * k, 1 - 0.2 * k, 0.3, 0] for k in range(5)]
    wrong = candidates(rows, [0] * 5)
    assert sorted(decisions(wrong, 2)).count("kept") == 2


def test_a_near_duplicate_of_a_kept_picture_is_named_and_refused() -> None:
    near, far = math.sqrt(1 - 0.98**2), math.sqrt(1 - 0.9**2)
    rows: list[list[float]] = [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [0.98, 0, 0, 0, near, 0, 0, 0],
        [0.9, 0, 0, 0, 0, far, 0, 0],
        [0.5, 0, 0, 0, 0, 0, 0, 0.8],
    ]
    given = candidates(rows, [0] * 4)
    assert (
        float(given.features[0] @ given.features[1])
        > NEAR_DUPLICATE
        > float(given.features[0] @ given.features[2])
    )
    assert decisions(given, 3) == ["kept", "rejected: near-duplicate of 0.png", "kept", "kept"]


def test_the_same_picture_under_two_classes_is_judged_in_each() -> None:
    given = candidates([[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]], [0, 1])
    assert decisions(given, 1) == ["kept", "kept"]
    more = random_candidates(40)
    alone = FeatureSet(more.features[more.labels == 2], more.labels[more.labels == 2])
    among = [d for d, label in zip(decisions(more, 3), more.labels.tolist(), strict=True) if label == 2]
    assert [d == "kept" for d in among] == [d == "kept" for d in decisions(alone, 3)]


def test_an_encoder_that_puts_a_class_within_a_point_is_not_taken_for_a_copier() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = functional.normalize(
        torch.eye(4, 8).repeat(10, 1) + 0.02 * torch.randn(40, 8, generator=generator), dim=1
    )
    rows[4] = rows[0]  # but this is a copy
    given = FeatureSet(rows, torch.arange(40) % 4)
    assert float((rows[0::4] @ rows[0::4].T).min()) > NEAR_DUPLICATE
    decided = decisions(given, 4)
    assert [sum(d == "kept" for d in decided[label::4]) for label in range(4)] == [4] * 4
    pair = {decided[0], decided[4]}
    assert pair != {"kept"}


def test_a_blank_picture_is_never_kept_even_if_none_is_left() -> None:
    given = random_candidates(8)
    assert decisions(given, 2, blank=[0, 4])[0::4] == ["rejected: blank", "rejected: blank"]


def test_no_candidates_at_all_are_no_verdicts() -> None:
    assert (
        select(FeatureSet(torch.empty(0, 8), torch.empty(0, dtype=torch.int64)), CLASSIFIER, [], [], 2) == []
    )

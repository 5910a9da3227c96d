"""Which candidates become cache keys: K of each class that CLIP reads as what they should show, and no two alike.

Candidates of a class are tried in this order: those whose class is among the first in CLIP's zero-shot reading before
all others, then by margin. The reading is a preference and not a condition, because there are domains which CLIP
cannot read (zero-shot at chance on X-rays, where a cache reaches 1.00): there a condition would throw away good
pictures. A blank picture and a near-duplicate of one that is kept are never keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.manifest import BLANK, KEPT, OUTDONE, near_duplicate

NEAR_DUPLICATE = 0.97
"""Cosine of two features above which the pictures count as one."""

_TOP = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a candidate, and why."""

    margin: float
    cosine: float
    rank: int
    decision: str


def select(
    candidates: FeatureSet, classifier: Tensor, files: Sequence[str], blank: Sequence[bool], per_class: int
) -> list[Verdict]:
    """A verdict for each candidate; at most ``per_class`` of each class are kept.

    ``classifier`` (N, C). Classes are judged apart, so a picture may be kept under two of them: in fine-grained sets
    pictures of different classes do come that close, and whose it is the margin says. Only how close pictures of a
    class usually are is asked of all classes, lest a class of copies pass for a usual one.
    """
    members = [(candidates.labels == label).nonzero().flatten() for label in range(len(classifier))]
    threshold = _threshold(candidates.features, members)
    verdicts: dict[int, Verdict] = {}
    for label, rows in enumerate(members):
        similarities = candidates.features[rows] @ classifier.T
        own = similarities[:, label]
        others = similarities.clone()
        others[:, label] = -math.inf
        margins = (own - others.amax(dim=1)).tolist() if len(classifier) > 1 else own.tolist()
        ranks = (1 + (others > own[:, None]).sum(dim=1)).tolist()
        top = min(_TOP, max(1, len(classifier) // 2))
        order = sorted(range(len(rows)), key=lambda i: (ranks[i] > top, -round(margins[i], 6), i))
        decisions = _greedy(
            candidates.features[rows],
            order,
            [files[row] for row in rows.tolist()],
            [blank[row] for row in rows.tolist()],
            per_class,
            threshold,
        )
        for i, row in enumerate(rows.tolist()):
            verdicts[row] = Verdict(
                round(margins[i], 6), round(float(own[i]), 6), int(ranks[i]), decisions[i]
            )
    return [verdicts[row] for row in range(len(candidates))]


def _greedy(
    features: Tensor,
    order: Sequence[int],
    files: Sequence[str],
    blank: Sequence[bool],
    per_class: int,
    threshold: float,
) -> list[str]:
    decisions = [OUTDONE] * len(order)
    kept: list[int] = []
    for i in order:
        if blank[i]:
            decisions[i] = BLANK
        elif len(kept) < per_class:
            alike = features[kept] @ features[i] > threshold
            twins = [other for other, is_alike in zip(kept, alike.tolist(), strict=True) if is_alike]
            decisions[i] = near_duplicate(files[twins[0]]) if twins else KEPT
            kept += [] if twins else [i]
    return decisions


def _threshold(features: Tensor, members: Sequence[Tensor]) -> float:
    """0.97, or nearer to 1 where pictures of a class are that close to each other anyway.

    0.97 is meant for the encoders of CLIP. A small one may put all pictures of a class within 0.99 of each other
    (the embedded one does); two are alike only if they are four times closer than two of a class usually are.
    """
    medians = []
    for rows in members:
        if len(rows) > 1:
            cosines = features[rows] @ features[rows].T
            above = torch.triu_indices(len(rows), len(rows), offset=1)
            medians.append(cosines[above[0], above[1]].median())
    usual = float(torch.stack(medians).median()) if medians else 0.0
    return max(NEAR_DUPLICATE, 1 - (1 - usual) / 4)

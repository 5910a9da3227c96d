"""Rows in whole lanes, and products of them: in odd widths a library may add up a row otherwise at another place."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

LANES = 64
"""A multiple of as many numbers of a row as a processor or a GPU takes at a time."""


def inner_products(features: Tensor, rows: Tensor) -> Tensor:
    """(b, n): features (b, C) times rows (n, C), contiguous, padded with zeros to whole lanes.

    In odd shapes a matrix product gives the same row other last bits at another place in the batch or in memory, and
    then one record's gradient would depend on how many stand before it. ``privacy.device_trial`` tries it out before a charge.
    """
    n, more = len(rows), -len(rows) % LANES
    features, rows = whole_lanes(features), whole_lanes(rows)
    if more:
        rows = functional.pad(rows, (0, 0, 0, more))
    products = features @ rows.T
    return products[:, :n].contiguous() if more else products


def whole_lanes(rows: Tensor) -> Tensor:
    """(n, C) with zeros behind, so that C is a multiple of ``LANES``: then every row begins at a like address."""
    missing = -rows.shape[1] % LANES
    return functional.pad(rows, (0, missing)) if missing else rows

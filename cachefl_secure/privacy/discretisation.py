"""What it costs to account for discrete Gaussian noise as if it were Gaussian.

Accountants know the Gaussian mechanism; silos add N_Z(0, scale^2) to vectors of integers. The two are so close that a
statement about the first, an epsilon from a privacy loss distribution with or without Poisson sampling, holds for the second
after a small, proved addition. Proof: ``threat_model/decisions/0024-discrete-noise-accounted-as-gaussian.md``.

    slack = discretisation_slack(scale, dimension, steps)
    epsilon = epsilon_of_the_gaussian_mechanism(gaussian_delta(delta, slack)) + slack

is an epsilon for ``steps`` adaptive steps that each add such noise to all of ``dimension`` integers. The noise may be one
draw or a sum of shares, ``scale`` being the root of the sum of their squared scales (``SMALLEST_SHARE`` says from where on).
Steps of different scales: add up the slacks of the groups of equal scale, and take ``gaussian_delta`` once a group.
"""

from __future__ import annotations

import math

SMALLEST_SLACK_SCALE = 100.0
SMALLEST_SHARE = 10.0
"""The scale from which up to 2^20 shares of independent noise count as one draw (decision 0023)."""
LARGEST_EPSILON = 50.0
ADDED_DELTA = 1e-20
"""Covers every event that the proof leaves out, while the final epsilon is at most ``LARGEST_EPSILON``."""

_X = 100.0  # events of probability 4 exp(-x) are left out
_LARGEST = 2**40


def discretisation_slack(scale: float, dimension: int, steps: int) -> float:
    """What to add to the epsilon of the Gaussian mechanism: twice eta of decision 0024.

    About 1.7 sqrt(dimension * steps) / scale^2: 2e-8 for scale 590,000, 819,200 dimensions, 20 steps.
    Raises ValueError where the proof does not reach: scale below 100, more than 2^40 numbers in all,
    or sqrt(100 * dimension * steps) above scale^2.
    """
    if min(dimension, steps) < 1:
        raise ValueError("dimension and steps must be at least 1")
    return 2.0 * log_ratio_bound(scale, dimension * steps, _X)


def gaussian_delta(delta: float, slack: float) -> float:
    """The delta at which to evaluate the Gaussian mechanism, for ``delta`` in the end.

    Above 0.999 delta for slack <= 0.001 and delta >= 1e-16. Raises ValueError if nothing is left.
    """
    left = (delta - ADDED_DELTA) * math.exp(-slack / 2.0)
    if not 0.0 < left <= 1.0:
        raise ValueError("delta leaves nothing for the Gaussian mechanism")
    return left


def log_ratio_bound(scale: float, size: int, x: float) -> float:
    """eta: P(E) <= e^eta Q(E) + 4 e^-x and Q(E) <= e^eta P(E) + 4 e^-x for every event E.

    P is N_Z(0, scale^2) and Q is N(0, scale^2) rounded to the nearest integer, both ``size`` times independently.
    """
    if not SMALLEST_SLACK_SCALE <= scale <= _LARGEST:
        raise ValueError(f"scale must be from {SMALLEST_SLACK_SCALE:g} to 2^40")
    if not 1 <= size <= _LARGEST:
        raise ValueError("dimension times steps must be from 1 to 2^40")
    if not 1.0 <= x <= 1000.0:
        raise ValueError("x must be from 1 to 1000")
    if math.sqrt(size * x) > scale**2:
        raise ValueError("scale is too small for so many numbers")
    largest_square = 2.0 * (x + math.log(2.0 * size))
    squares = size + 2.0 * math.sqrt(size * x) + 2.0 * x
    leading = (math.sqrt(size * x) + x) / (12.0 * scale**2)
    return leading + (largest_square + 1.0) * squares / (500.0 * scale**4)

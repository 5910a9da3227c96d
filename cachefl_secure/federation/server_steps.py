"""From the mean update of a round to the change of what is trained: the server's side of an optimizer.

Every party computes it from the published sums and must get the same bits. So it is made of additions,
multiplications, divisions and square roots of float64 numbers, entry by entry in the order written: IEEE 754
rounds each of them correctly, everywhere. No powers, no sums over entries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.server_plan import AdamServer, MeanServer, MomentumServer, ServerPlan

Moments = tuple[NDArray[np.float64], ...]
"""What the optimizer remembers of earlier rounds: a function of their sums. Empty before the first."""


def server_step(
    section: ServerPlan, moments: Moments, mean: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Moments]:
    """The change that this round's mean update (rows * C,) leads to, and the moments after it."""
    match section:
        case MeanServer():
            return mean, ()
        case MomentumServer():
            velocity = section.momentum * moments[0] + mean if moments else mean
            return section.rate * velocity, (velocity,)
        case AdamServer():
            return _adam(section, moments, mean)


def _adam(
    section: AdamServer, moments: Moments, mean: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Moments]:
    first, second = moments or (np.zeros_like(mean), np.full_like(mean, section.epsilon * section.epsilon))
    first = section.beta1 * first + (1.0 - section.beta1) * mean
    second = section.beta2 * second + (1.0 - section.beta2) * (mean * mean)
    return section.rate * first / (np.sqrt(second) + section.epsilon), (first, second)

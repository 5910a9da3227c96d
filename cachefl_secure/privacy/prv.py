"""A third opinion: the PRV accountant of Opacus (Gopi et al. 2021). Loads torch; tests use it, no command does.

Its answer is an upper bound with an error of 0.01, so 0 <= PRV - PLD <= 0.02 at one delta shows that the two agree.
"""

from __future__ import annotations

import warnings

from cachefl_secure.privacy.accounting import Rounds, runs_of
from cachefl_secure.privacy.mechanism import View

MOST_ABOVE_PLD = 0.02


def epsilon_prv(rounds: Rounds, delta: float, view: View = View.LOCAL) -> float:
    """Epsilon of all rounds with noise at ``delta``: compare with ``accountants.pld_epsilon`` at the same one.

    Raises:
        ValueError, RuntimeError, MemoryError: beyond its numerical range: a small delta or a large epsilon.
    """
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps) for rate, noise, steps in runs_of(rounds, view)]
    with warnings.catch_warnings():
        # Its domain is sized by RDP, which complains about orders it does not need.
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        warnings.filterwarnings("ignore", "divide by zero encountered in log", RuntimeWarning)
        return float(accountant.get_epsilon(delta))

"""From numbers of noised steps to an epsilon, three ways. Numbers in, numbers out; no torch, no Opacus.

PLD    Google's ``dp-accounting``, rounded pessimistically on a grid: never below the true epsilon
RDP    Renyi DP (Mironov 2017): the second opinion, and the filter of a ledger with several settings
closed form    full batch only: Gaussian DP (Balle and Wang 2018, Theorem 8)

``prv`` has a fourth by Opacus. All are for add-or-remove-one adjacency and real-valued Gaussian noise.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

GRID = 1e-3
"""Coarsest discretisation of the privacy loss: reports at most 8e-4 above 1e-4, ten times faster."""

ORDERS = (*range(2, 65), 80, 128, 256, 512, 1024)
"""Renyi orders of the second accountant: integers, whose sums are finite; fractional ones may not converge."""

Runs = tuple[tuple[float, float, int], ...]
"""(sampling rate, noise multiplier, steps) by setting, sorted: equal histories are accounted and cached alike."""

_FINEST_GRID = 1e-5
_MOST_CELLS = 1e7  # epsilons in the thousands need a coarser grid, which only makes them larger
_SETTINGS_KEPT = 16


@lru_cache(maxsize=8192)
def pld_epsilon(runs: Runs, delta: float) -> float:
    """Epsilon of all steps at ``delta`` by privacy loss distributions; 0.0 without steps."""
    if not runs:
        return 0.0
    composed, *others = _distributions(runs, _grid(runs))
    for each in others:
        composed = composed.compose(each)
    return float(composed.get_epsilon_for_delta(delta))


@lru_cache(maxsize=8192)
def rdp_epsilon(runs: Runs, delta: float, orders: tuple[int, ...] = ORDERS) -> float:
    """The same by Renyi DP: the best of ``orders``. Not below PLD's, up to PLD's grid."""
    from dp_accounting import rdp

    if not runs:
        return 0.0
    total = sum(steps * _rdp_of_step(rate, noise, orders) for rate, noise, steps in runs)
    return float(rdp.compute_epsilon(orders, total, delta)[0])


def best_order(runs: Runs, delta: float) -> int:
    """The one of ``ORDERS`` at which ``rdp_epsilon`` is smallest."""
    by_order: dict[int, float] = {order: rdp_epsilon(runs, delta, (order,)) for order in ORDERS}
    best: int = min(ORDERS, key=by_order.__getitem__)
    return best


def epsilon_closed_form(noise_multiplier: float, steps: int, delta: float) -> float:
    """Exact epsilon of full-batch steps: Gaussian DP with mu = sqrt(steps) / noise_multiplier.

    Balle and Wang (2018), Theorem 8. ``math.inf`` is never needed: any delta in (0, 1) has a finite epsilon.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    mu = math.sqrt(steps) / noise_multiplier

    def excess(epsilon: float) -> float:
        # e^epsilon * Phi(..) in logarithms: the factor alone overflows.
        return (
            math.exp(log_ndtr(mu / 2 - epsilon / mu))
            - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
            - delta
        )

    if excess(0.0) <= 0.0:
        return 0.0
    highest = mu * mu / 2 + mu * (1.0 + math.sqrt(2.0 * math.log(1.0 / delta)))
    return float(brentq(excess, 0.0, highest, xtol=1e-12))


def _distributions(runs: Runs, grid: float) -> list[Any]:
    """One loss distribution for all full-batch steps, which are one Gaussian together, and one a sampled setting."""
    sampled = [_sampled(rate, noise, steps, grid) for rate, noise, steps in runs if rate < 1.0]
    precision = math.fsum(steps / noise**2 for rate, noise, steps in runs if rate == 1.0)
    return sampled if precision == 0.0 else [*sampled, _distribution(1.0, 1.0 / math.sqrt(precision), grid)]


def _grid(runs: Runs) -> float:
    # A sampled step's loss is about rate / noise. A grid coarser than that rounds every step up, and
    # hundreds of them add up; a finer one costs nothing, because the losses span less. Full-batch steps
    # are one Gaussian whatever their number.
    sampled = (rate / noise_multiplier / 2 for rate, noise_multiplier, _ in runs if rate < 1.0)
    fine = max(_FINEST_GRID, min((GRID, *sampled)))
    mu_squared = math.fsum(steps / noise**2 for _, noise, steps in runs)
    return max(fine, mu_squared / _MOST_CELLS)


def _distribution(rate: float, noise_multiplier: float, grid: float) -> Any:
    """The privacy loss distribution of one step."""
    import dp_accounting  # more than a second; whoever only trains does not need it
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        value_discretization_interval=grid,
        sampling_prob=rate,
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


_grown: dict[tuple[float, float, float], tuple[int, Any]] = {}  # (steps, their distribution) asked for last


def _sampled(rate: float, noise_multiplier: float, steps: int, grid: float) -> Any:
    """The distribution of so many sampled steps.

    A ledger asks for one round more each time: convolving what it asked for last costs a tenth of composing
    all steps anew. The two ways differ in the ninth digit of epsilon.
    """
    setting = (rate, noise_multiplier, grid)
    had, composed = _grown.get(setting, (0, None))
    more = steps - had
    if composed is None or more < 0 or more > had // 4:
        composed = _composed(*setting, steps)
    elif more:
        composed = composed.compose(_composed(*setting, more))
    if len(_grown) >= _SETTINGS_KEPT:
        _grown.clear()
    _grown[setting] = steps, composed
    return composed


@lru_cache(maxsize=_SETTINGS_KEPT)
def _composed(rate: float, noise_multiplier: float, grid: float, steps: int) -> Any:
    return _step(rate, noise_multiplier, grid).self_compose(steps)


_step = lru_cache(maxsize=_SETTINGS_KEPT)(_distribution)


@lru_cache(maxsize=1024)
def _rdp_of_step(sampling_rate: float, noise_multiplier: float, orders: tuple[int, ...]) -> Any:
    """One step's Renyi divergences at ``orders``, as an array."""
    import dp_accounting
    from dp_accounting import rdp

    step = dp_accounting.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1.0:
        step = dp_accounting.PoissonSampledDpEvent(sampling_rate, step)
    accountant = rdp.RdpAccountant(orders)
    accountant.compose(step)
    return accountant.rdp

"""The privacy cost of a sequence of rounds. No torch, no Opacus: the coordinator and an auditor run this.

Google's ``dp-accounting`` PLD decides, rounded pessimistically on a grid of 1e-3, so the true epsilon is
never above the reported one. RDP is the second opinion of the ledger's verification; tests compare with
Opacus' PRV accountant and, for full batch, with the closed form. The central-limit "GDP" accountant is
not offered: it reports 11.99 where PLD says 13.36.

Never amplified by which silos take part: participation is visible to the coordinator.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from cachefl_secure.errors import UnaccountedMechanism
from cachefl_secure.names import SiloId
from cachefl_secure.privacy.mechanism import LocalMechanism, Mechanism, NoMechanism

GRID = 1e-3
"""Coarsest discretisation of the privacy loss: reports at most 8e-4 above 1e-4, ten times faster."""

_FINEST_GRID = 1e-5

ORDERS = (*range(2, 65), 80, 128, 256, 512, 1024)
"""Renyi orders of the second accountant: integers, whose sums are finite; fractional ones may not converge."""

MAX_ROUNDS = 100_000
"""As many as a plan may hold."""

Rounds = Sequence[tuple[Mechanism, int]]
"""(mechanism, number of rounds), in any order."""

_Runs = tuple[tuple[float, float, int], ...]  # (sampling rate, noise multiplier, steps), sorted


@lru_cache(1)
def accountant_name() -> str:
    """What the ledger writes beside every epsilon."""
    return f"dp-accounting {version('dp-accounting')} PLD grid <= {GRID!r} add-or-remove-one"


def epsilon_spent(rounds: Rounds, delta: float) -> float:
    """Epsilon after all rounds at ``delta``; infinity if a round was not private.

    Raises:
        UnaccountedMechanism: a kind that this version cannot account for.
    """
    runs = _runs(rounds)
    return math.inf if runs is None else _pld_epsilon(runs, delta)


def epsilon_rdp(rounds: Rounds, delta: float) -> float:
    """The same by Renyi DP (Mironov 2017; best of ``ORDERS``). Not below PLD's, up to PLD's grid."""
    runs = _runs(rounds)
    return math.inf if runs is None else _rdp_epsilon(runs, delta)


@lru_cache(256)
def _rdp_epsilon(runs: _Runs, delta: float) -> float:
    from dp_accounting import rdp

    if not runs:
        return 0.0
    total = sum(steps * _rdp_of_step(rate, noise_multiplier) for rate, noise_multiplier, steps in runs)
    return float(rdp.compute_epsilon(ORDERS, total, delta)[0])


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


def noise_multiplier_for(epsilon: float, delta: float, sampling_rate: float, total_steps: int) -> float:
    """A noise multiplier of five digits with which ``total_steps`` cost 99.5 to 100 % of ``epsilon``.

    Calibrated with the accountant that decides, so a plan never overruns its own cap.
    """
    if not (0.0 < epsilon < math.inf and 0.0 < delta < 1.0):
        raise ValueError("epsilon must be positive and finite, delta in (0, 1)")

    def cost(noise_multiplier: float) -> float:
        return _pld_epsilon(((sampling_rate, noise_multiplier, total_steps),), delta)

    # Full batch costs more than any sampling, so its closed form is a start from above.
    enough = _full_batch_noise(epsilon, delta, total_steps)
    while cost(enough) > epsilon:
        enough *= 1.01
    factor = 1.002
    while cost(too_little := enough / factor) <= epsilon:
        enough, factor = too_little, min(factor * factor, 2.0)
    while enough / too_little > 1.0003:
        middle = math.sqrt(enough * too_little)
        enough, too_little = (middle, too_little) if cost(middle) <= epsilon else (enough, middle)
    while cost(rounded := _round_up(enough, 5)) > epsilon:  # PLD is monotone up to its grid only
        enough *= 1.0001
    return rounded


def rounds_within(mechanism: Mechanism, delta: float, cap: float) -> int:
    """T_max: the most rounds of this mechanism with an epsilon of at most ``cap``, up to ``MAX_ROUNDS``."""

    def fits(rounds: int) -> bool:
        return epsilon_spent([(mechanism, rounds)], delta) <= cap

    fitting, beyond = 0, 1
    while beyond <= MAX_ROUNDS and fits(beyond):
        fitting, beyond = beyond, beyond * 2
    beyond = min(beyond, MAX_ROUNDS + 1)
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
    return fitting


def may_follow(mechanism: Mechanism, earlier: Sequence[Mechanism]) -> bool:
    """Whether testing the epsilon of all rounds against a cap stays a valid filter when this one is added.

    A PLD is a filter when the parameters are fixed and only the number of rounds is open, and for pure
    Gaussians however they are chosen; not for sampled Gaussians chosen after seeing results (Regehr et al.
    2026, arXiv 2602.15815). Infinity is infinity in any order.
    """
    settings: set[tuple[float, float]] = set()
    for each in (*earlier, mechanism):
        match each:
            case LocalMechanism():
                settings.add((each.sampling_rate, each.noise_multiplier))
            case NoMechanism():
                pass
            case _:  # a kind that nobody has thought about fits no filter
                return False
    return len(settings) <= 1 or all(rate == 1.0 for rate, _ in settings)


def local_statement(silo: SiloId, epsilon: float, delta: float) -> str:
    """The one privacy sentence that is printed, with against whom it holds.

    The second statement of the design, epsilon_aggregate under a secure sum, is not printed yet. It needs
    the honest survivors' noise of every completed round, and for several local steps it holds for the
    last step of a round only; until the ledger records that, printing a smaller number would be a claim
    without a proof. Epsilon is rounded up. Computational: the noise is an AES-256-CTR stream.
    """
    if math.isinf(epsilon):
        return f"Silo {silo} released updates without noise: no differential privacy is claimed."
    return (
        "Against the coordinator and all other institutions together, without assuming secure aggregation, "
        f"every record of silo {silo} has ({rounded_up(epsilon)}, {delta!r})-DP."
    )


def rounded_up(epsilon: float, decimals: int = 3) -> str:
    """How an epsilon is written for people: never smaller than it is."""
    if math.isinf(epsilon):
        return "infinity"
    scale = 10**decimals
    return f"{math.ceil(epsilon * scale) / scale:.{decimals}f}"


def _runs(rounds: Rounds) -> _Runs | None:
    """Steps by setting, sorted, so that equal histories are accounted and cached alike. None: not private."""
    steps: Counter[tuple[float, float]] = Counter()
    private = True
    for mechanism, count in rounds:
        if count < 0:
            raise ValueError("a number of rounds is negative")
        match mechanism:
            case LocalMechanism():
                steps[mechanism.sampling_rate, mechanism.noise_multiplier] += count * mechanism.steps
            case NoMechanism():
                private = private and count == 0
            case _:  # not reachable for a typed caller; a wrong object must never be free
                raise UnaccountedMechanism(type(mechanism).__name__)
    if not private:
        return None
    return tuple((rate, noise, n) for (rate, noise), n in sorted(steps.items()) if n)


@lru_cache(maxsize=4096)
def _pld_epsilon(runs: _Runs, delta: float) -> float:
    import dp_accounting
    from dp_accounting import pld

    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=_grid(runs)
    )
    for sampling_rate, noise_multiplier, steps in runs:
        accountant.compose(_step_event(sampling_rate, noise_multiplier), steps)
    return float(accountant.get_epsilon(delta))


def _grid(runs: _Runs) -> float:
    # A sampled step's loss is about rate / noise. A grid coarser than that rounds every step up, and
    # hundreds of them add up; a finer one costs nothing, because the losses span less. Full-batch steps
    # are one Gaussian whatever their number.
    sampled = (rate / noise_multiplier / 2 for rate, noise_multiplier, _ in runs if rate < 1.0)
    return max(_FINEST_GRID, min((GRID, *sampled)))


@lru_cache(maxsize=256)
def _rdp_of_step(sampling_rate: float, noise_multiplier: float) -> Any:
    """One step's Renyi divergences at ``ORDERS``, as an array."""
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(ORDERS)
    accountant.compose(_step_event(sampling_rate, noise_multiplier))
    return accountant.rdp


def _step_event(sampling_rate: float, noise_multiplier: float) -> Any:
    """One step's event, made by the mechanism itself; what does not matter for accounting is set to 1."""
    return LocalMechanism(
        sampling_rate=sampling_rate,
        noise_multiplier=noise_multiplier,
        clip_norm=1.0,
        steps=1,
        expected_records=1,
        learning_rate=1.0,
    ).event()


def _full_batch_noise(epsilon: float, delta: float, steps: int) -> float:
    low, high = 1e-6, 1e9
    while high / low > 1.0 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if epsilon_closed_form(middle, steps, delta) <= epsilon else (middle, high)
    return high


def _round_up(value: float, digits: int) -> float:
    if value == 0.0:
        return 0.0
    scale = digits - 1 - math.floor(math.log10(value))
    rounded = float(f"{math.ceil(value * 10.0**scale) / 10.0**scale:.{digits}g}")
    return rounded if rounded >= value else math.nextafter(value, math.inf)

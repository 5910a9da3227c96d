"""The privacy cost of rounds, in both views. No torch, no Opacus: the coordinator and an auditor run this.

What a mechanism's noise is worth in a view comes from the mechanism; what that costs, from ``accountants``.
PLD decides, RDP is the second opinion of the ledger's verification; tests compare with Opacus' PRV accountant
(``prv``) and, for full batch, with the closed form. The central-limit "GDP" accountant is not offered: it
reports 11.99 where PLD says 13.36. Never amplified by which silos take part: the coordinator sees who does.

The noise is discrete and the accountants are for real Gaussians. So every epsilon here is theirs at
``_FOR_GAUSSIANS`` of delta, plus the most that the two can differ over all steps; the rest of delta
pays for the tails. A history for which that exceeds ``MAX_SLACK`` is not accounted: it costs infinity.

An accountant's epsilon is one thing, a rule by which rounds may be *chosen* one after the other is another.
``cost_of`` is for rounds that were fixed beforehand. ``charged`` is what a ledger says of rounds that were chosen
after seeing results; the cap it is compared with is what holds however they were chosen (decision 0025):

  one setting      of sampling rate and noise, and only the number of rounds is open: PLD
  all full batch   however the noise is chosen: Gaussians, whose losses depend on sum(1 / noise^2) alone: PLD
  otherwise        sampled Gaussians are not ordered (Regehr et al. 2026, arXiv 2602.15815), PLD is no filter: RDP at
                   the one order that the ledger's first plan fixed (Feldman and Zrnic 2021, arXiv 2008.11193)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

from cachefl_secure.errors import UnaccountedMechanism
from cachefl_secure.privacy.accountants import (
    GRID,
    ORDERS,
    Runs,
    best_order,
    epsilon_closed_form,
    pld_epsilon,
    rdp_epsilon,
)
from cachefl_secure.privacy.discretisation import LARGEST_EPSILON, discretisation_slack
from cachefl_secure.privacy.mechanism import (
    DistributedMechanism,
    GridMechanism,
    LocalMechanism,
    Mechanism,
    NoMechanism,
    StatisticsMechanism,
    View,
)

MAX_ROUNDS = 100_000
"""As many as a plan may hold."""

MAX_SLACK = 1e-3
"""Most that discreteness may add to epsilon. Far above what any plan's lattice gives."""

_FOR_GAUSSIANS = 0.999
"""Less than ``discretisation.gaussian_delta`` leaves for any slack that is accounted for."""

Rounds = Iterable[tuple[Mechanism, int]]
"""(mechanism, number of rounds), in any order."""


@dataclass(frozen=True, slots=True)
class Cost:
    """A pair of epsilons, one for each view: spent, asked for, or a cap."""

    local: float
    aggregate: float

    def of(self, view: View) -> float:
        return self.local if view is View.LOCAL else self.aggregate

    def within(self, caps: Cost) -> bool:
        """Whether neither passes its cap; NaN is within nothing."""
        return self.local <= caps.local and self.aggregate <= caps.aggregate

    def at_least(self, other: Cost) -> Cost:
        """The larger of both, view by view."""
        return Cost(max(self.local, other.local), max(self.aggregate, other.aggregate))

    def at_most(self, other: Cost) -> Cost:
        """The smaller of both, view by view."""
        return Cost(min(self.local, other.local), min(self.aggregate, other.aggregate))


NOTHING = Cost(0.0, 0.0)


@lru_cache(1)
def accountant_name() -> str:
    """What the ledger writes beside every epsilon."""
    library = f"dp-accounting {version('dp-accounting')}"
    return f"{library} PLD or RDP at {_FOR_GAUSSIANS!r} of delta, add-or-remove-one"


def epsilon_spent(rounds: Rounds, delta: float, view: View = View.LOCAL) -> float:
    """Epsilon after all rounds, fixed beforehand, at ``delta``; infinity if a round was not private.

    Raises:
        UnaccountedMechanism: a kind that this version cannot account for.
    """
    runs, slack = _history(rounds, view)
    return slack if math.isinf(slack) else _covered(pld_epsilon(runs, _FOR_GAUSSIANS * delta) + slack)


def cost_of(rounds: Rounds, delta: float) -> Cost:
    """``epsilon_spent`` in both views."""
    listed = list(rounds)
    return Cost(epsilon_spent(listed, delta, View.LOCAL), epsilon_spent(listed, delta, View.AGGREGATE))


def epsilon_rdp(rounds: Rounds, delta: float, view: View = View.LOCAL, order: int | None = None) -> float:
    """The same by Renyi DP, at one order or the best of ``ORDERS``. Not below PLD's, up to PLD's grid."""
    runs, slack = _history(rounds, view)
    orders = ORDERS if order is None else (order,)
    return slack if math.isinf(slack) else _covered(rdp_epsilon(runs, _FOR_GAUSSIANS * delta, orders) + slack)


def charged(rounds: Rounds, delta: float, rdp_order: int) -> Cost:
    """What a ledger says of rounds that were chosen one after the other: see the module's docstring.

    Once settings are mixed the RDP bound over *everything* counts, whose order was fixed before anything was seen.
    """
    listed = list(rounds)

    def epsilon(view: View) -> float:
        if is_mixed(listed, view):
            return epsilon_rdp(listed, delta, view, rdp_order)
        return epsilon_spent(listed, delta, view)

    return Cost(epsilon(View.LOCAL), epsilon(View.AGGREGATE))


def second_opinion(rounds: Rounds, delta: float) -> Cost:
    """By the accountant that did not decide in ``charged``: RDP as a rule, PLD once settings are mixed."""
    listed = list(rounds)

    def epsilon(view: View) -> float:
        return (epsilon_spent if is_mixed(listed, view) else epsilon_rdp)(listed, delta, view)

    return Cost(epsilon(View.LOCAL), epsilon(View.AGGREGATE))


def contradicts(second: Cost, first: Cost, rounds: Rounds) -> bool:
    """Whether a second opinion shows the first to be wrong: RDP must not be below PLD, whichever decided."""
    listed = list(rounds)

    def fault(view: View) -> bool:
        rdp, pld = second.of(view), first.of(view)
        if is_mixed(listed, view):
            rdp, pld = pld, rdp
        return rdp < pld - GRID  # PLD may be up to its grid above the true value

    return fault(View.LOCAL) or fault(View.AGGREGATE)


def runs_of(rounds: Rounds, view: View) -> Runs:
    """The rounds as the accountants take them; those without noise are left out."""
    return _history(rounds, view)[0]


def is_mixed(rounds: Rounds, view: View) -> bool:
    """Whether sampled steps stand beside steps of another setting, so that PLD is no filter."""
    settings = {(rate, noise) for rate, noise, _ in runs_of(rounds, view)}
    return len(settings) > 1 and any(rate < 1.0 for rate, _ in settings)


def is_too_coarse(rounds: Rounds) -> bool:
    """Whether noise of too few integer steps stands between these rounds and an epsilon, and nothing else."""
    noised = [(mechanism, count) for mechanism, count in rounds if not isinstance(mechanism, NoMechanism)]
    return any(math.isinf(_history(noised, view)[1]) for view in View)


def rounds_within(
    mechanism: Mechanism, delta: float, caps: Cost, *, earlier: Rounds = (), rdp_order: int = 0
) -> int:
    """T_max: the most rounds of this mechanism, after those ``earlier``, within both caps, up to ``MAX_ROUNDS``."""
    before = list(earlier)

    def fits(rounds: int) -> bool:
        return charged([*before, (mechanism, rounds)], delta, rdp_order).within(caps)

    fitting, beyond = 0, 1
    while beyond <= MAX_ROUNDS and fits(beyond):
        fitting, beyond = beyond, beyond * 2
    beyond = min(beyond, MAX_ROUNDS + 1)
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
    return fitting


def noise_multiplier_for(
    epsilon: float, delta: float, sampling_rate: float, total_steps: int, *, slack: float = MAX_SLACK
) -> float:
    """A noise multiplier of five digits with which ``total_steps`` cost 99.5 to 100 % of ``epsilon``, less ``slack``.

    Calibrated with the accountant that decides, so a plan never overruns its own cap. ``slack`` is room for the
    discreteness of the noise: by default the most that is ever accounted for.
    """
    if not (slack < epsilon < math.inf and 0.0 < delta < 1.0):
        raise ValueError(f"epsilon must be more than {slack!r} and finite, delta in (0, 1)")
    target, delta = epsilon - slack, _FOR_GAUSSIANS * delta

    def cost(noise_multiplier: float) -> float:
        return pld_epsilon(((sampling_rate, noise_multiplier, total_steps),), delta)

    # Full batch costs more than any sampling, so its closed form is a start from above.
    enough = _full_batch_noise(target, delta, total_steps)
    while cost(enough) > target:
        enough *= 1.01
    factor = 1.002
    while cost(too_little := enough / factor) <= target:
        enough, factor = too_little, min(factor * factor, 2.0)
    while enough / too_little > 1.0003:
        middle = math.sqrt(enough * too_little)
        enough, too_little = (middle, too_little) if cost(middle) <= target else (enough, middle)
    while cost(rounded := _round_up(enough, 5)) > target:  # PLD is monotone up to its grid only
        enough *= 1.0001
    return rounded


def rdp_order_for(sampling_rate: float, noise_multiplier: float, total_steps: int, delta: float) -> int:
    """The order for a plan's ``rdp_order``: the best one for its own steps."""
    return best_order(((sampling_rate, noise_multiplier, total_steps),), _FOR_GAUSSIANS * delta)


def _history(rounds: Rounds, view: View) -> tuple[Runs, float]:
    """Steps by setting as one view has them, and the slack of all; infinite if a round was not accountable."""
    steps: Counter[tuple[float, float]] = Counter()
    numbers: Counter[float] = Counter()  # that noise was added to, by its scale in integer steps
    private = True
    for mechanism, count in rounds:
        if count < 0:
            raise ValueError("a number of rounds is negative")
        match mechanism:
            case DistributedMechanism() | LocalMechanism() | StatisticsMechanism() | GridMechanism():
                steps[mechanism.sampling_rate, mechanism.noise_multiplier_in(view)] += count * mechanism.steps
                # In the aggregate noise is a sum of shares: of the larger scale, as if drawn at once (decision 0023).
                share = mechanism.noise_multiplier_in(view) / mechanism.noise_multiplier
                numbers[mechanism.noise_scale * share] += count * mechanism.steps * mechanism.dimension
            case NoMechanism():
                private = private and count == 0
            case _:  # not reachable for a typed caller; a wrong object must never be free
                raise UnaccountedMechanism(type(mechanism).__name__)
    runs = tuple((rate, noise, n) for (rate, noise), n in sorted(steps.items()) if n)
    slack = math.fsum(_slack(scale, count) for scale, count in numbers.items() if count)
    return runs, slack if private and slack <= MAX_SLACK else math.inf


def _covered(epsilon: float) -> float:
    """Beyond 50 what is left of delta does not pay for the tails of decision 0024; nobody should want to claim that."""
    return epsilon if epsilon <= LARGEST_EPSILON else math.inf


def _slack(scale: float, numbers: int) -> float:
    """For all noise of one scale at once: less than the sum over rounds."""
    try:
        return discretisation_slack(scale, numbers, 1)
    except ValueError:  # noise too coarse, or too many numbers, for the proof
        return math.inf


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

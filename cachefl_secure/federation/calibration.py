"""From what an operator wants (epsilon, rounds) to the numbers of a plan: noise and length of steps.

Both follow from public numbers only, so choosing them costs no privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from cachefl_secure.errors import OPTIONS, ConfigError
from cachefl_secure.federation.option_errors import check_epsilon, checked
from cachefl_secure.plan import FederationPlan
from cachefl_secure.privacy.accounting import epsilon_spent, noise_multiplier_for, rdp_order_for
from cachefl_secure.privacy.discretisation import LARGEST_EPSILON
from cachefl_secure.privacy.mechanism import Mechanism, View, step_mechanism
from cachefl_secure.privacy_plan import DistributedPlan, LocalPlan, NoPrivacyPlan, StepsPlan
from cachefl_secure.server_plan import FEDAVG, AdamServer, MeanServer, MomentumServer, ServerPlan

LONGEST_STEP = 8.0
"""Learning rate with little noise. Found on the embedded data; longer steps gain nothing there."""

NOISE_ON_A_KEY = 2.0
"""Norm of the noise that all rounds together may leave on one cache key; keys start with norm 1.

Found on the embedded data: between 1.4 and 3.2 is best at every epsilon from 0.5 to 8, together and alone.
"""

DEFAULT_EPSILON = {"distributed": 2.0, "local": 8.0}
"""Aggregate epsilon with ``distributed``, local epsilon with ``local``."""

_DELTA = 1e-5


def default_delta(expected_records: int) -> float:
    """1e-5, or less if a silo is expected to have so many records that this is not far below one over them."""
    return min(_DELTA, 1.0 / (10 * max(expected_records, 1)))  # 0 is refused elsewhere, by name


MechanismName = Literal["distributed", "local", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What calibration must know of the rest of a federation."""

    trained_rows: int
    """NK, or N if the keys of a class move together."""
    feature_dim: int
    cohort_size: int
    """Updates in a sum, at least: more only make its noise smaller."""
    honest_survivors: int
    """h: shares of noise that nobody can subtract."""
    server: ServerPlan = FEDAVG
    keys_a_row: int = 1
    """Cache keys that one trained row moves: K where the keys of a class move together."""

    @classmethod
    def of(cls, plan: FederationPlan, cohort_size: int) -> Sizes:
        """Of a plan that exists."""
        return cls(
            trained_rows=plan.trained_rows,
            feature_dim=plan.encoder.feature_dim,
            cohort_size=cohort_size,
            honest_survivors=plan.secure_sum.honest_survivors,
            server=plan.server,
            keys_a_row=plan.number_of_keys // plan.trained_rows,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyChoices:
    """What an operator chooses of the plan's privacy section."""

    mechanism: MechanismName = "distributed"
    epsilon: float | None = None
    """Aggregate with ``distributed``, local with ``local``; None: ``DEFAULT_EPSILON``."""
    epsilon_local: float = 8.0
    """With ``distributed``: the most that a silo's local epsilon may become, whatever the secure sum adds."""
    delta: float = 1e-5
    rounds: int = 20
    sampling_rate: float = 1.0
    steps_per_round: int = 1
    clip_norm: float = 0.1
    expected_records: int = 250
    proximal: float = 0.0
    replay_weight: float = 0.0
    learning_rate: float | None = None
    """None: as long as the noise allows, see ``learning_rate_for``."""

    @property
    def target(self) -> float:
        """The epsilon that noise is calibrated for; infinite without noise."""
        if self.mechanism == "none":
            return math.inf
        return DEFAULT_EPSILON[self.mechanism] if self.epsilon is None else self.epsilon

    def draft(self) -> StepsPlan:
        """The section with every choice checked, not yet calibrated.

        Raises:
            ConfigError: a number out of range.
        """
        if self.target < math.inf:
            check_epsilon(self.target)
        steps = {
            "clip_norm": self.clip_norm,
            "sampling_rate": self.sampling_rate,
            "expected_records": self.expected_records,
            "learning_rate": LONGEST_STEP if self.learning_rate is None else self.learning_rate,
            "rounds": self.rounds,
            "delta": self.delta,
        }
        own = {
            "steps_per_round": self.steps_per_round,
            "proximal": self.proximal,
            "replay_weight": self.replay_weight,
        }
        private = {"noise_multiplier": 1.0, "rdp_order": 2}
        match self.mechanism:
            case "distributed":
                if self.steps_per_round != 1:
                    reason = "only the noise of a round's one step adds up over silos; use --mechanism local"
                    raise ConfigError(OPTIONS, "steps_per_round", reason)
                if self.proximal or self.replay_weight:
                    reason = "a round is one step of integers: nothing else can pull; use --mechanism local"
                    raise ConfigError(OPTIONS, "proximal" if self.proximal else "replay_weight", reason)
                epsilons = {"epsilon_aggregate": self.target, "epsilon_local": self.epsilon_local}
                return checked(
                    lambda: DistributedPlan(**steps, **private, **epsilons),  # type: ignore[arg-type]
                    chosen_as={"epsilon_aggregate": "epsilon"},
                )
            case "local":
                own["epsilon_local"] = self.target
                return checked(
                    lambda: LocalPlan(**steps, **private, **own),  # type: ignore[arg-type]
                    chosen_as={"epsilon_local": "epsilon"},
                )
            case "none":
                return checked(lambda: NoPrivacyPlan(**steps, **own))  # type: ignore[arg-type]

    def plan(self, sizes: Sizes) -> StepsPlan:
        """The section, calibrated.

        Raises:
            ConfigError: a number out of range.
        """
        made = recalibrated(self.draft(), self.target, sizes)
        if self.learning_rate is None:
            return made
        return msgspec.structs.replace(made, learning_rate=self.learning_rate)


def recalibrated(section: StepsPlan, epsilon: float, sizes: Sizes) -> StepsPlan:
    """The section with noise and learning rate for another epsilon; infinity gives mechanism ``none``.

    Calibrated with the accountant that decides: after all rounds epsilon is at most the target, and the local one
    of ``distributed`` at most the section's.
    """
    if math.isinf(epsilon) or isinstance(section, NoPrivacyPlan):
        quiet = _without_noise(section)
        return msgspec.structs.replace(quiet, learning_rate=learning_rate_for(quiet, sizes))
    made: DistributedPlan | LocalPlan
    if isinstance(section, DistributedPlan):
        made = _distributed(section, epsilon, sizes)
    else:
        noise = _noise(section, epsilon, View.LOCAL, sizes)
        made = msgspec.structs.replace(section, noise_multiplier=noise, epsilon_local=epsilon)
    steps = made.rounds * made.steps_per_round
    order = rdp_order_for(made.sampling_rate, made.noise_multiplier, steps, made.delta)
    return msgspec.structs.replace(made, learning_rate=learning_rate_for(made, sizes), rdp_order=order)


def as_local(section: StepsPlan) -> StepsPlan:
    """The section as one silo trains by itself: there are no others whose noise would help."""
    if not isinstance(section, DistributedPlan):
        return section
    return LocalPlan(**{name: getattr(section, name) for name in LocalPlan.__struct_fields__})


def _distributed(section: DistributedPlan, epsilon: float, sizes: Sizes) -> DistributedPlan:
    """A silo's share is what the aggregate asks of it, or what its local epsilon asks for if that is more."""
    noise = _noise(section, epsilon, View.AGGREGATE, sizes)
    most = min(section.epsilon_local, LARGEST_EPSILON)
    if _cost(section, noise, View.LOCAL, sizes) > most:
        noise = _noise(section, most, View.LOCAL, sizes)
    made = msgspec.structs.replace(section, noise_multiplier=noise, epsilon_aggregate=epsilon)
    local = epsilon_spent([(_mechanism(made, sizes), made.rounds)], made.delta, View.LOCAL)
    return msgspec.structs.replace(made, epsilon_local=min(section.epsilon_local, upward(local, 4)))


def _noise(section: DistributedPlan | LocalPlan, epsilon: float, view: View, sizes: Sizes) -> float:
    """The least noise multiplier, to four digits, whose epsilon in this view is at most the target."""
    shares = sizes.honest_survivors if view is View.AGGREGATE else 1
    steps = section.rounds * section.steps_per_round
    hardly = min(1e-5, epsilon / 100)  # what integers cost: looked up below
    noise = noise_multiplier_for(epsilon, section.delta, section.sampling_rate, steps, slack=hardly)
    noise = upward(noise / math.sqrt(shares), 5)
    while _cost(section, noise, view, sizes) > epsilon:
        noise = upward(noise * 1.0005, 5)
    return noise


def _cost(section: DistributedPlan | LocalPlan, noise: float, view: View, sizes: Sizes) -> float:
    mechanism = _mechanism(msgspec.structs.replace(section, noise_multiplier=noise), sizes)
    return epsilon_spent([(mechanism, section.rounds)], section.delta, view)


def _mechanism(section: StepsPlan, sizes: Sizes) -> Mechanism:
    return step_mechanism(
        section,
        trained_rows=sizes.trained_rows,
        feature_dim=sizes.feature_dim,
        honest_survivors=sizes.honest_survivors,
    )


def _without_noise(section: StepsPlan) -> NoPrivacyPlan:
    kept = {name: getattr(section, name) for name in NoPrivacyPlan.__struct_fields__}
    return NoPrivacyPlan(**kept)


def learning_rate_for(section: StepsPlan, sizes: Sizes) -> float:
    """The longest step, up to ``LONGEST_STEP``, whose noise leaves at most ``NOISE_ON_A_KEY`` on a key.

    A round adds, to each of the C entries of a key, the mean of ``cohort_size`` independent normals of
    standard deviation learning_rate * noise_multiplier * sqrt(steps) / (sampling_rate * expected_records).
    Rounded down to two digits.
    """
    divisor = section.sampling_rate * section.expected_records * math.sqrt(sizes.cohort_size)
    steps = section.steps_of_noise * _rounds_of_noise(section.rounds, sizes.server)
    per_unit = section.noise_multiplier * math.sqrt(sizes.feature_dim * steps) / divisor
    # Noise that moves K keys alike does not average out in their class's score: sqrt(K) times as much of it arrives there.
    most = NOISE_ON_A_KEY / math.sqrt(sizes.keys_a_row)
    longest = LONGEST_STEP if per_unit == 0.0 else min(LONGEST_STEP, most / per_unit)
    return _down_to_two_digits(longest)


def _rounds_of_noise(rounds: int, server: ServerPlan) -> float:
    """How many rounds' noise, as of plain means, a server's optimizer leaves in the cache after so many rounds."""
    match server:
        case MeanServer():
            return rounds
        case MomentumServer():
            gains = [server.rate * sum(server.momentum**k for k in range(n)) for n in range(1, rounds + 1)]
            return math.fsum(gain * gain for gain in gains)
        case AdamServer():
            return rounds  # it divides by the size of updates: how far noise leads is a matter of its rate


ServerName = Literal["mean", "momentum", "adam"]

USUAL_MOMENTUM = 0.9
"""Of a server that has one."""
_OF_SERVER = {"rate": "server_rate", "momentum": "server_momentum", "beta1": "server_momentum"}


def server_section(
    name: ServerName, rate: float | None, momentum: float, *, rounds: int, feature_dim: int
) -> ServerPlan:
    """The server's optimizer; a rate of None gives one that suits the number of rounds.

    Raises:
        ConfigError: a number out of range.
    """
    if not 0.0 <= momentum < 1.0:
        raise ConfigError(OPTIONS, "server_momentum", f"must be at least 0 and less than 1, is {momentum:g}")
    match name:
        case "mean":
            if rate is not None:
                raise ConfigError(OPTIONS, "server_rate", "the mean is added as it is: it has no rate")
            if momentum != USUAL_MOMENTUM:
                raise ConfigError(
                    OPTIONS, "server_momentum", "the mean is added as it is: use --server momentum"
                )
            return FEDAVG
        case "momentum":
            usual = 1.0 - momentum if rate is None else rate
            return checked(lambda: MomentumServer(momentum=momentum, rate=usual), chosen_as=_OF_SERVER)
        case "adam":
            usual = adam_rate(rounds, feature_dim, momentum) if rate is None else rate
            return checked(lambda: AdamServer(beta1=momentum, rate=usual), chosen_as=_OF_SERVER)


def adam_rate(rounds: int, feature_dim: int, momentum: float = 0.9, decay: float = 0.99) -> float:
    """The rate at which nothing but noise would leave about ``NOISE_ON_A_KEY`` on a key, whatever its size.

    With the mean of the second moment in its place: round n divides by the root of 1 - decay^n, in units of the
    noise, and takes a part (1 - momentum) momentum^(n - k) of round k's. Rounded down to two digits.
    """
    variance = 0.0
    for k in range(1, rounds + 1):
        later = (momentum ** (n - k) / math.sqrt(1.0 - decay**n) for n in range(k, rounds + 1))
        variance += ((1.0 - momentum) * math.fsum(later)) ** 2
    return _down_to_two_digits(NOISE_ON_A_KEY / math.sqrt(variance * feature_dim))


def _down_to_two_digits(value: float) -> float:
    """Nobody should read a precision into it."""
    scale = 10.0 ** (1 - math.floor(math.log10(value)))
    return math.floor(value * scale + 1e-9) / scale


def upward(value: float, digits: int) -> float:
    """The next number of so many digits."""
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    rounded = float(f"{math.ceil(value * scale) / scale:.{digits}g}")
    return rounded if rounded >= value else math.nextafter(value, math.inf)

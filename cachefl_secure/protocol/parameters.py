"""The numbers of one round. Every party derives them from the plan; none is believed from a message."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np

from cachefl_secure.errors import ConfigError
from cachefl_secure.grid_layout import GRID
from cachefl_secure.grid_layout import entry_bound as grid_entry_bound
from cachefl_secure.lattice import sum_bound
from cachefl_secure.plan import FederationPlan
from cachefl_secure.privacy_plan import DistributedPlan, GridPlan, LocalPlan, NoPrivacyPlan, StatisticsPlan
from cachefl_secure.protocol import packing
from cachefl_secure.protocol.graph import COMPLETE_UP_TO, Ring, ring_of
from cachefl_secure.protocol.segments import MAX_VECTOR_BITS, Segment, bits_for, noise_tail
from cachefl_secure.statistics_layout import UNIT, entries, entry_bound

MAX_SILOS = 1024
"""Every silo verifies two signatures of every other in a round: about 0.4 s and 0.5 MB here, growing with n."""
COUNTERS = 1  # entry 0 counts the clamped entries of all updates in the sum

_GRID_STEPS_PER_NOISE_STD = 32  # rounding then adds at most 0.02 % to the variance of the noise
_CLAMP_NOISE_STDS = 8
_LEVELS_WITHOUT_NOISE = 2**16
_FILE = "plan.toml"

UPDATE = "update"
"""Name of the first vector."""


@dataclass(frozen=True, slots=True)
class RoundParameters:
    """Cohort, thresholds and encoding of one round.

    Guarantees, checked on construction: the sum of ``cohort_size`` encodings cannot wrap, and any two groups
    of ``threshold`` silos of the roster meet in more silos than may collude. As that holds over the roster
    and not only over one cohort, it holds across attempts: an honest silo stands in both groups, and it
    reveals shares for one update once, so at most one sum over a round's updates is ever opened.
    """

    cohort_size: int
    """n: silos that were asked."""
    roster_size: int
    """N: silos that may ever be asked for the same update. Those that were not asked count as dropped."""
    colluders: int
    """f: silos that may pool what they know with the coordinator."""
    threshold: int
    """t: silos without which nothing is opened. 2 t > N + f. In the complete graph, the shares that recover a secret."""
    minimum_survivors: int
    """Fewest updates in a sum: at least t, the plan's minimum, and f + 2."""
    dimension: int
    """d: entries of an update."""
    clamp: float
    """Entries of an update are clamped to [-clamp, clamp]."""
    grid_step: float
    """Value of one integer step."""
    vector_bits: int
    """b: bits that hold any sum of ``cohort_size`` encoded entries."""
    counters: int = COUNTERS
    """Exact uint64 counters after the vector, modulo 2^64."""
    segments: tuple[Segment, ...] = ()
    """Further integer vectors of the same masked input, in this order after the update."""
    noise_std: float = 0.0
    """Standard deviation, in grid steps, of the integer noise in the sum of all updates. 0: there is none."""
    counts_clamped: bool = True
    """Whether counter 0 may count clamped entries. Of what is whole numbers already it stays 0 (``IntegerEncoding``)."""
    ring: Ring | None = None
    """Sparse graph of a large cohort; None: everybody shares with everybody."""

    def __post_init__(self) -> None:
        if (
            not (self.roster_size + self.colluders) / 2
            < self.threshold
            <= self.cohort_size
            <= self.roster_size
        ):
            raise ValueError(f"threshold {self.threshold} does not suit {self.cohort_size} silos")
        if not max(self.threshold, self.colluders + 2) <= self.minimum_survivors <= self.cohort_size:
            raise ValueError(f"{self.minimum_survivors} survivors do not suit {self.cohort_size} silos")
        if self.dimension < 1 or self.counters < 1:
            raise ValueError("an update has entries and a counter")
        needed = bits_for(
            self.entry_bound, self.cohort_size, noise_std=self.noise_std, entries=self.dimension
        )
        if not needed <= self.vector_bits <= MAX_VECTOR_BITS:
            raise ValueError(f"{self.vector_bits} bits do not hold the sum")
        if len({segment.name for segment in self.segments} - {UPDATE}) != len(self.segments):
            raise ValueError("two segments have one name")
        for segment in self.segments:
            segment.check(self.cohort_size)
        if self.ring is not None and self.ring.degree > self.cohort_size - 2:
            raise ValueError(f"{self.ring.degree} neighbours do not suit {self.cohort_size} silos")

    @classmethod
    def derive(cls, plan: FederationPlan, cohort_size: int, roster_size: int) -> RoundParameters:
        """The parameters that ``plan`` implies for ``cohort_size`` silos of a roster of ``roster_size``.

        Raises:
            ConfigError: the cohort is too small for the plan's minimum or its colluders, or too large;
                or the noise is so small beside the signal that 32 bits do not hold the sum.
        """
        threshold, minimum_survivors = _thresholds(plan, cohort_size, roster_size)
        clamp, grid_step, share_std = _encoding(plan)
        segments = _segments(plan, cohort_size)
        noise_std = share_std * math.sqrt(cohort_size)
        dimension = 1 if segments else plan.number_of_parameters
        bound = _entry_bound(clamp, grid_step)
        bits = bits_for(bound, cohort_size, noise_std=noise_std, entries=dimension)
        if bits > MAX_VECTOR_BITS:
            reason = (
                f"the sum of {cohort_size} silos needs {bits} bits, {MAX_VECTOR_BITS} are there: "
                "noise too small beside the signal, or too many silos"
            )
            raise ConfigError(_FILE, "privacy", reason)
        return cls(
            cohort_size=cohort_size,
            roster_size=roster_size,
            colluders=plan.secure_sum.colluders,
            threshold=threshold,
            minimum_survivors=minimum_survivors,
            dimension=dimension,
            clamp=clamp,
            grid_step=grid_step,
            vector_bits=bits,
            segments=segments,
            noise_std=noise_std,
            counts_clamped=isinstance(plan.privacy, LocalPlan | NoPrivacyPlan),
            ring=_ring(plan, cohort_size),
        )

    @property
    def secret_threshold(self) -> int:
        """Shares that recover a secret; one fewer reveals nothing."""
        return self.threshold if self.ring is None else self.ring.threshold

    @property
    def entry_bound(self) -> int:
        """B: largest absolute value of an encoded entry."""
        return _entry_bound(self.clamp, self.grid_step)

    def sum_bound(self, silos: int) -> int:
        """Largest absolute value of an entry of the sum of so many updates; with noise except with probability 2^-40."""
        return silos * self.entry_bound + noise_tail(self.noise_std, self.dimension)

    @property
    def word(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Little-endian word that sums are made in, modulo 2^16 or 2^32: numpy wraps there by itself.

        The ring is Z/2^vector_bits: only that many low bits of a masked word are sent, and they are enough
        for the same bits of the sum.
        """
        return np.dtype("<u2" if self.vector_bits <= 16 else "<u4")

    @property
    def vector_bytes(self) -> int:
        """Length of a sum, in whole words."""
        return self.dimension * self.word.itemsize

    @property
    def packed_bytes(self) -> int:
        """Length of a masked update on the wire, without counters and segments."""
        return packing.packed_bytes(self.dimension, self.vector_bits)

    @property
    def input_bytes(self) -> int:
        """Length of all vectors of a masked input on the wire, without counters."""
        return self.packed_bytes + sum(segment.packed_bytes for segment in self.segments)

    @property
    def sum_bytes(self) -> int:
        """Length of a whole sum as it is stored and delivered: update, counters, segments."""
        return self.vector_bytes + self.counter_bytes + sum(each.sum_bytes for each in self.segments)

    @property
    def counter_bytes(self) -> int:
        return self.counters * 8

    @property
    def quorum(self) -> int:
        """q: signatures that make a certificate. Two certificates share 2 q - N > f signers, hence an honest one."""
        return (self.roster_size + self.colluders) // 2 + 1

    @property
    def dropouts_tolerated(self) -> int:
        """Silos of the cohort that may be missing from the sum, on a ring if nobody chose them."""
        spare = self.cohort_size - self.minimum_survivors
        return spare if self.ring is None else min(spare, self.ring.dropouts)


def _entry_bound(clamp: float, grid_step: float) -> int:
    return math.ceil(clamp / grid_step) + 1  # + 1: stochastic rounding may go up


def _thresholds(plan: FederationPlan, n: int, roster_size: int) -> tuple[int, int]:
    """(t, minimum survivors), or why there are none."""
    if n > roster_size:
        raise ConfigError(_FILE, "secure_sum", f"{n} silos in the cohort, {roster_size} in the roster")
    f, minimum = plan.secure_sum.colluders, plan.secure_sum.minimum_cohort
    if n < minimum:
        raise ConfigError(
            _FILE, "secure_sum.minimum_cohort", f"{n} silos in the cohort, the plan asks for {minimum}"
        )
    if n > MAX_SILOS:
        raise ConfigError(_FILE, "secure_sum", f"{n} silos in the cohort, at most {MAX_SILOS} are supported")
    if f + 2 > n:
        raise ConfigError(_FILE, "secure_sum.colluders", explain(n, f))
    # Two groups of t among N share at least 2 t - N > f silos, hence an honest one (secagg 8.4).
    threshold = (roster_size + f) // 2 + 1
    if n < threshold:
        reason = (
            f"{n} silos in the cohort, a roster of {roster_size} with {f} colluder(s) needs {threshold}: "
            "fewer could be opened into two sums over the same updates"
        )
        raise ConfigError(_FILE, "secure_sum", reason)
    survivors = max(threshold, plan.secure_sum.minimum_survivors, f + 2)
    if survivors > n:
        reason = f"{n} silos in the cohort, a sum needs {survivors}"
        raise ConfigError(_FILE, "secure_sum.minimum_survivors", reason)
    return threshold, survivors


def _ring(plan: FederationPlan, n: int) -> Ring | None:
    if n <= COMPLETE_UP_TO:
        return None
    return ring_of(n, plan.secure_sum.colluders, n * plan.secure_sum.dropout_percent // 100)


def explain(n: int, colluders: int, minimum_survivors: int = 3, dropout_percent: int = 10) -> str:
    """What a roster of ``n`` silos can survive with ``colluders``, in words for the people who choose them."""
    who = f"{n} silos with {_many(colluders, 'colluder')}"
    if colluders + 2 > n:
        most = max(n - 2, 0)
        return f"{who}: impossible, a sum must hide two honest updates; {n} silos tolerate at most {most}"
    threshold = (n + colluders) // 2 + 1
    least = max(threshold, colluders + 2)
    needed = max(least, minimum_survivors)
    if needed > n:
        return f"{who}: impossible, a sum needs {needed} survivors"
    text = f"{who}: {needed} must stay to the end, {_many(n - needed, 'silo')} may drop out"
    if needed > least:
        text += f"; with minimum_survivors = {least}, {n - least} might"
        if least == 2:
            text += ", but then each of two survivors could subtract its own update from the sum and have the other's"
    if colluders:
        text += _explain_without_colluders(n, least, minimum_survivors)
    elif not colluders and n == 3:
        text += ". Three silos can survive one dropout or one colluder, not both"
    return text + _explain_ring(n, colluders, dropout_percent)


def _explain_without_colluders(n: int, least: int, minimum_survivors: int) -> str:
    """How many more might drop out if nobody colluded; nothing if as many as now."""
    threshold = max(n // 2 + 1, 2)
    needed = max(threshold, minimum_survivors)
    if needed < max(least, minimum_survivors):
        return f". Colluders cost dropouts: with none, up to {n - needed} might drop out"
    if threshold < least:
        return (
            f". Colluders cost dropouts: with none and minimum_survivors = {threshold}, up to {n - threshold} "
            "might drop out"
        )
    return ""


def _explain_ring(n: int, colluders: int, dropout_percent: int) -> str:
    """On a ring more colluders than planned do harm long before they are a threshold of the roster."""
    dropouts, more = n * dropout_percent // 100, n // 10
    ring = None if n <= COMPLETE_UP_TO else ring_of(n, colluders, dropouts)
    if ring is None:
        return ""
    text = (
        f". Above {COMPLETE_UP_TO} silos {ring.dropouts} dropouts are planned for, if nobody chose them. Each silo "
        f"shares its secrets with {ring.degree} others, and {ring.threshold} of these that collude open its update: "
        f"beyond {_many(colluders, 'colluder')} protection fades early"
    )
    other = ring_of(n, more, dropouts) if colluders < more else None
    if other is not None:
        text += f"; with colluders = {more} it would take {other.threshold} of {other.degree}"
    return text


def _many(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def _segments(plan: FederationPlan, silos: int) -> tuple[Segment, ...]:
    """What a plan's one release consists of. The update is then one entry that is always 0."""
    privacy = plan.privacy
    match privacy:
        case StatisticsPlan():
            bound = entry_bound(UNIT, privacy.expected_records, privacy.noise_multiplier)
            lengths = entries(len(plan.classes), plan.encoder.feature_dim)
        case GridPlan():
            lengths = {GRID: len(privacy.pairs)}
            bound = grid_entry_bound(lengths[GRID], privacy.expected_records, privacy.noise_multiplier)
        case DistributedPlan() | LocalPlan() | NoPrivacyPlan():
            return ()
        case unknown:
            assert_never(unknown)
    try:
        return tuple(Segment.of(name, length, bound, silos) for name, length in lengths.items())
    except ValueError as error:
        raise ConfigError(_FILE, "privacy.expected_records", str(error)) from None


def _encoding(plan: FederationPlan) -> tuple[float, float, float]:
    """(clamp, grid step, standard deviation of the integer noise of one silo in grid steps)."""
    privacy = plan.privacy
    match privacy:
        case DistributedPlan():
            # A grid step is an integer step of the gradients (lattice), so integers are summed as they are.
            unit, noise = plan.lattice.unit, privacy.noise_multiplier
            grid_step = privacy.step_length * (privacy.clip_norm / unit)
            bound = sum_bound(plan.lattice, privacy.sampling_rate, privacy.expected_records, noise)
            return bound * grid_step, grid_step, noise * unit
        case LocalPlan():
            # Signal: the largest noiseless entry if no batch exceeds sampling_rate * expected_records.
            noise, signal = privacy.update_noise_std, _signal(privacy)
            return _CLAMP_NOISE_STDS * noise + signal, noise / _GRID_STEPS_PER_NOISE_STD, 0.0
        case NoPrivacyPlan():
            signal = _signal(privacy)
            return signal, 2 * signal / _LEVELS_WITHOUT_NOISE, 0.0
        case StatisticsPlan() | GridPlan():
            return 1.0, 1.0, 0.0  # of the update; see _segments
        case unknown:
            assert_never(unknown)


def _signal(privacy: LocalPlan | NoPrivacyPlan) -> float:
    """Largest entry of what a round's steps do by clipped gradients, of records and of replayed images."""
    return privacy.learning_rate * privacy.steps_per_round * (1.0 + privacy.replay_weight)

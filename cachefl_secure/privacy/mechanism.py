"""What a silo does to its records in one round, as one frozen object.

Training reads sampling rate, clip norm, noise and steps from it; accounting counts the same object, whose
``event`` says it in the terms of ``dp_accounting``; the ledger stores its fields. So the noise that is charged
is the noise that is drawn.

The kinds are a closed set, the union ``Mechanism``:

``distributed``   one integer step a round; shares of the noise add up in the secure sum
``local``         DP-SGD in each silo, one or more steps a round, every step with all of its noise
``statistics``    class sums and Gram matrix, once; shares of the noise add up
``grid``          counts of right answers by alpha and beta, once; shares of the noise add up
``none``          the same steps without noise; not private

Every ``match`` over mechanisms refuses a kind it does not name: an unknown mechanism costs infinity and fits no
filter. A new kind gets a section and a place in the unions of ``privacy_plan``, then its class, a place in the unions,
``_KINDS`` and ``_COUNTS`` here; mypy then names every place that must know it but these: ``accounting._history`` and
``terms.relies_on``, which refuse it until they do; ``founding_choices``, ``forecasting`` and the command line's
``given_privacy``, so that it can be chosen; the second auditor and the simulation (``tests/vectors/audit_release``,
``tests/simulation/mechanisms``).

Two epsilons can be asked of each, see ``View``. Only mechanisms of *one* noised release a round have
``honest_survivors``, hence a smaller aggregate epsilon. For several local steps dividing by sqrt(h) is false, since
later steps depend on what a silo's own noise left of the earlier ones (it claims 1.20 where 2.22 leaks, in
the counter-example of the tests); so ``LocalMechanism`` has nowhere to say it.
"""

from __future__ import annotations

import enum
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from cachefl_secure.errors import UnaccountedMechanism
from cachefl_secure.grid_layout import UNIT_BITS, step_of
from cachefl_secure.lattice import Lattice, sum_bound
from cachefl_secure.plan import FederationPlan
from cachefl_secure.privacy_plan import (
    DistributedPlan,
    GridPlan,
    LocalPlan,
    NoPrivacyPlan,
    StatisticsPlan,
    StepsPlan,
)
from cachefl_secure.statistics_layout import FEATURE_BITS, entries


class View(enum.StrEnum):
    """Against whom an epsilon holds."""

    LOCAL = "local"
    """The coordinator and all other institutions together; the secure sum is not assumed."""
    AGGREGATE = "aggregate"
    """The coordinator with at most the plan's colluders, as long as the secure sum is unbroken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ClippedSteps:
    """Steps of clipped gradient descent on the cache keys, in public constants only."""

    sampling_rate: float
    """1.0 takes every record in every step; below, each is drawn independently (Poisson)."""
    clip_norm: float
    expected_records: int
    """The public divisor. Never a silo's own number of records."""
    learning_rate: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sampling_rate <= 1.0:
            raise ValueError("sampling_rate must be in (0, 1]")
        if self.expected_records < 1:
            raise ValueError("expected_records must be at least 1")
        if not all(math.isfinite(x) and x > 0 for x in (self.clip_norm, self.learning_rate)):
            raise ValueError("clip_norm and learning_rate must be positive")

    @property
    def step_length(self) -> float:
        """What a (noised) sum of clipped gradients is multiplied by; equals the plan's ``step_length``."""
        return self.learning_rate / (self.sampling_rate * self.expected_records * self.clip_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NoisedSteps(_ClippedSteps):
    """Integer gradients with discrete Gaussian noise of standard deviation ``noise_multiplier`` units."""

    noise_multiplier: float
    """Of the silo's own noise, in clip norms: the smaller of what a step can rely on in any view."""
    feature_bits: int
    gradient_bits: int
    dimension: int
    """Entries of a sum: trained rows * C. Enters accounting through the gap between discrete and real Gaussians."""

    def __post_init__(self) -> None:
        super(_NoisedSteps, self).__post_init__()
        _check_noise(self.noise_multiplier)
        Lattice(self.feature_bits, self.gradient_bits)
        if self.dimension < 1:
            raise ValueError("dimension must be at least 1")

    @property
    def lattice(self) -> Lattice:
        return Lattice(self.feature_bits, self.gradient_bits)

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise in integer steps: noise multiplier times sensitivity."""
        return self.noise_multiplier * self.lattice.unit

    @property
    def sum_bound(self) -> int:
        """B: integer sums are clamped to [-B, B] before noise; what a round's encoding holds."""
        return sum_bound(self.lattice, self.sampling_rate, self.expected_records, self.noise_multiplier)

    @property
    def integer_value(self) -> float:
        """What one integer step is worth, as a gradient."""
        return self.clip_norm / self.lattice.unit


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalMechanism(_NoisedSteps):
    """DP-SGD inside the silo. Its aggregate epsilon is its local one: no credit for the others' noise.

    The last step of a round would deserve some. But a silo's update is rounded to the grid of the secure
    sum by itself, and that a sum of rounded updates is no worse than a rounded sum is not proved.
    """

    kind: ClassVar[str] = "local"
    steps: int

    def __post_init__(self) -> None:
        super(LocalMechanism, self).__post_init__()
        _check_steps(self.steps)

    def event(self, view: View = View.LOCAL) -> Any:
        """The ``dp_accounting.DpEvent`` of one round, for add-or-remove-one adjacency."""
        return _gaussian_steps(self.noise_multiplier_in(view), self.sampling_rate, self.steps)

    def noise_multiplier_in(self, view: View) -> float:
        """Standard deviation of what hides one record's gradient in one step, in clip norms."""
        return self.noise_multiplier


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedMechanism(_NoisedSteps):
    """One step a round whose integer sum leaves under masks, with this silo's share of the noise.

    In the sum stand the shares of at least ``honest_survivors`` silos that do not collude, this one's among
    them: the secure sum aborts otherwise. They are independent, so their variances add up.
    """

    kind: ClassVar[str] = "distributed"
    honest_survivors: int
    """h, from the plan: fewest survivors less colluders."""

    def __post_init__(self) -> None:
        super(DistributedMechanism, self).__post_init__()
        if self.honest_survivors < 1:
            raise ValueError("honest_survivors must be at least 1")

    @property
    def steps(self) -> int:
        """One: of a second one no share of the others' noise would be left."""
        return 1

    def event(self, view: View = View.LOCAL) -> Any:
        """As ``LocalMechanism.event``."""
        return _gaussian_steps(self.noise_multiplier_in(view), self.sampling_rate, 1)

    def noise_multiplier_in(self, view: View) -> float:
        """As ``LocalMechanism.noise_multiplier_in``."""
        match view:
            case View.LOCAL:
                return self.noise_multiplier
            case View.AGGREGATE:
                return self.noise_multiplier * math.sqrt(self.honest_survivors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OneRelease:
    """Integer sums of all records, released once: Gaussian steps of sensitivity 1, with shares of the noise."""

    noise_multiplier: float
    """Of the silo's own share, in units, for each step."""
    honest_survivors: int
    dimension: int
    """Entries of all vectors together."""
    expected_records: int
    """Declared records of a silo: entries are clamped to what they can add up to. Never a silo's own count."""

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        if min(self.honest_survivors, self.dimension, self.expected_records) < 1:
            raise ValueError("honest_survivors, dimension and expected_records must be at least 1")

    @property
    def sampling_rate(self) -> float:
        return 1.0

    @property
    @abstractmethod
    def steps(self) -> int:
        """Releases of sensitivity 1."""

    @property
    @abstractmethod
    def unit(self) -> int:
        """Largest norm of one record's integers in any of them."""

    @property
    def noise_scale(self) -> float:
        """In integer steps."""
        return self.noise_multiplier * self.unit

    def event(self, view: View = View.LOCAL) -> Any:
        """As ``LocalMechanism.event``."""
        return _gaussian_steps(self.noise_multiplier_in(view), self.sampling_rate, self.steps)

    def noise_multiplier_in(self, view: View) -> float:
        """As ``LocalMechanism.noise_multiplier_in``."""
        shares = 1 if view is View.LOCAL else self.honest_survivors
        return self.noise_multiplier * math.sqrt(shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsMechanism(_OneRelease):
    """Sums of features by class and the Gram matrix of all features, released once, each with noise.

    Every record has a feature of norm at most 1, so it changes either by a norm of at most 1; the release
    costs two Gaussian steps. Whatever is computed from it is post-processing.
    """

    kind: ClassVar[str] = "statistics"
    feature_bits: int

    def __post_init__(self) -> None:
        super(StatisticsMechanism, self).__post_init__()
        if not 7 <= self.feature_bits <= 12:
            raise ValueError("feature_bits out of range")

    @property
    def steps(self) -> int:
        """Two: class sums and Gram matrix."""
        return 2

    @property
    def unit(self) -> int:
        """Products of two features."""
        return 1 << 2 * self.feature_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class GridMechanism(_OneRelease):
    """How many records each pair of alpha and beta classifies rightly, released once, with noise.

    A record changes all counts together by a norm of at most 1, the unit: one Gaussian step. The pair that
    wins is post-processing. ``dimension`` is G, the number of pairs; counts are clamped to sixteen times the
    declared records.
    """

    kind: ClassVar[str] = "grid"
    unit_bits: int

    def __post_init__(self) -> None:
        super(GridMechanism, self).__post_init__()
        if not 7 <= self.unit_bits <= 24:
            raise ValueError("unit_bits out of range")
        step_of(self.dimension, self.unit)

    @property
    def steps(self) -> int:
        """One."""
        return 1

    @property
    def unit(self) -> int:
        """Of all counts together."""
        return 1 << self.unit_bits

    @property
    def step(self) -> int:
        """What one right answer adds to a count."""
        return step_of(self.dimension, self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoMechanism(_ClippedSteps):
    """The same steps without noise. Not private: every round costs infinity."""

    kind: ClassVar[str] = "none"
    steps: int

    def __post_init__(self) -> None:
        super(NoMechanism, self).__post_init__()
        _check_steps(self.steps)

    @property
    def noise_multiplier(self) -> float:
        return 0.0

    def event(self, view: View = View.LOCAL) -> Any:
        """``NonPrivateDpEvent``: every accountant answers infinity."""
        import dp_accounting

        return dp_accounting.NonPrivateDpEvent()


ReleaseMechanism = StatisticsMechanism | GridMechanism
"""What a plan's one release may be."""
NoisedMechanism = DistributedMechanism | LocalMechanism | ReleaseMechanism
StepMechanism = DistributedMechanism | LocalMechanism | NoMechanism
"""What a round of training may be."""
Mechanism = NoisedMechanism | NoMechanism
_Kind = (
    type[DistributedMechanism]
    | type[LocalMechanism]
    | type[StatisticsMechanism]
    | type[GridMechanism]
    | type[NoMechanism]
)
_KINDS: dict[str, _Kind] = {
    kind.kind: kind
    for kind in (DistributedMechanism, LocalMechanism, StatisticsMechanism, GridMechanism, NoMechanism)
}
_COUNTS = frozenset(
    {
        "steps",
        "expected_records",
        "feature_bits",
        "gradient_bits",
        "unit_bits",
        "dimension",
        "honest_survivors",
    }
)


def mechanism_of(plan: FederationPlan) -> Mechanism:
    """The mechanism that the plan prescribes for one round."""
    if isinstance(plan.privacy, StatisticsPlan):
        return statistics_mechanism(
            plan.privacy,
            number_of_classes=len(plan.classes),
            feature_dim=plan.encoder.feature_dim,
            honest_survivors=plan.secure_sum.honest_survivors,
        )
    if isinstance(plan.privacy, GridPlan):
        return grid_mechanism(plan.privacy, honest_survivors=plan.secure_sum.honest_survivors)
    return step_mechanism(
        plan.privacy,
        trained_rows=plan.trained_rows,
        feature_dim=plan.encoder.feature_dim,
        honest_survivors=plan.secure_sum.honest_survivors,
    )


def statistics_mechanism(
    section: StatisticsPlan, *, number_of_classes: int, feature_dim: int, honest_survivors: int
) -> StatisticsMechanism:
    """As ``mechanism_of``, without the rest of a plan."""
    return StatisticsMechanism(
        noise_multiplier=section.noise_multiplier,
        honest_survivors=honest_survivors,
        feature_bits=FEATURE_BITS,
        dimension=sum(entries(number_of_classes, feature_dim).values()),
        expected_records=section.expected_records,
    )


def grid_mechanism(section: GridPlan, *, honest_survivors: int) -> GridMechanism:
    """As ``mechanism_of``, without the rest of a plan."""
    return GridMechanism(
        noise_multiplier=section.noise_multiplier,
        honest_survivors=honest_survivors,
        unit_bits=UNIT_BITS,
        dimension=len(section.pairs),
        expected_records=section.expected_records,
    )


def step_mechanism(
    section: StepsPlan, *, trained_rows: int, feature_dim: int, honest_survivors: int
) -> StepMechanism:
    """As ``mechanism_of``, without the rest of a plan."""
    public: dict[str, Any] = {
        "sampling_rate": section.sampling_rate,
        "clip_norm": section.clip_norm,
        "expected_records": section.expected_records,
        "learning_rate": section.learning_rate,
    }
    lattice = Lattice.of(trained_rows, feature_dim)
    integers: dict[str, Any] = {
        "noise_multiplier": section.noise_multiplier,
        "feature_bits": lattice.feature_bits,
        "gradient_bits": lattice.gradient_bits,
        "dimension": trained_rows * feature_dim,
    }
    match section:
        case DistributedPlan():
            return DistributedMechanism(**public, **integers, honest_survivors=honest_survivors)
        case LocalPlan():
            return LocalMechanism(**public, **integers, steps=section.steps_per_round)
        case NoPrivacyPlan():
            return NoMechanism(**public, steps=section.steps_per_round)


def mechanism_fields(mechanism: Mechanism) -> dict[str, str]:
    """The mechanism as strings for the ledger. Floats as ``repr``: exact in every language."""
    if type(mechanism) not in _KINDS.values():
        raise UnaccountedMechanism(type(mechanism).__name__)
    values = {field.name: repr(getattr(mechanism, field.name)) for field in fields(mechanism)}
    return {"kind": mechanism.kind, **values}


def mechanism_from_fields(values: Mapping[str, str]) -> Mechanism:
    """Inverse of ``mechanism_fields``.

    Raises:
        UnaccountedMechanism: a kind that this version does not know.
        ValueError: missing or extra fields, a value out of range, or a number not written as ``repr`` does.
    """
    name = values.get("kind", "")
    if name not in _KINDS:
        raise UnaccountedMechanism(name)
    kind = _KINDS[name]
    if set(values) != {"kind"} | {field.name for field in fields(kind)}:
        raise ValueError(f"fields of mechanism {kind.kind!r} differ")
    numbers = {k: int(v) if k in _COUNTS else float(v) for k, v in values.items() if k != "kind"}
    mechanism = kind(**numbers)  # type: ignore[arg-type]
    if mechanism_fields(mechanism) != dict(values):
        raise ValueError("a number is not in its shortest exact form")
    return mechanism


def _gaussian_steps(noise_multiplier: float, sampling_rate: float, steps: int) -> Any:
    import dp_accounting  # more than a second; whoever only trains does not need it

    step = dp_accounting.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1.0:
        step = dp_accounting.PoissonSampledDpEvent(sampling_rate, step)
    return dp_accounting.SelfComposedDpEvent(step, steps)


def _check_noise(noise_multiplier: float) -> None:
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError("noise_multiplier must be positive; without noise the mechanism is 'none'")


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError("steps must be at least 1")

"""What a silo does to its records in one round, as one frozen object.

Training reads sampling rate, clip norm, noise and steps from it; accounting turns the same object into
a ``DpEvent``; the ledger stores its fields. So the noise that is charged is the noise that is drawn.

The kinds are a closed set, the union ``Mechanism``. Two more are designed but not built, ``distributed``
(integer gradients with a share of discrete Gaussian noise) and ``statistics`` (class sums, one release):
each becomes a class here and a member of the union. Every ``match`` over mechanisms refuses a kind it does not
name: an unknown mechanism costs infinity and fits no filter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from cachefl_secure.errors import UnaccountedMechanism
from cachefl_secure.plan import PrivacyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class _ClippedSteps:
    """Steps of clipped gradient descent on the cache keys, in public constants only."""

    sampling_rate: float
    """1.0 takes every record in every step; below, each is drawn independently (Poisson)."""
    clip_norm: float
    steps: int
    expected_records: int
    """The public divisor. Never a silo's own number of records."""
    learning_rate: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sampling_rate <= 1.0:
            raise ValueError("sampling_rate must be in (0, 1]")
        if min(self.steps, self.expected_records) < 1:
            raise ValueError("steps and expected_records must be at least 1")
        if not all(math.isfinite(x) and x > 0 for x in (self.clip_norm, self.learning_rate)):
            raise ValueError("clip_norm and learning_rate must be positive")

    @property
    def step_length(self) -> float:
        """What a (noised) sum of clipped gradients is multiplied by; equals ``PrivacyPlan.step_length``."""
        return self.learning_rate / (self.sampling_rate * self.expected_records * self.clip_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalMechanism(_ClippedSteps):
    """DP-SGD inside the silo: every step adds N(0, (noise_multiplier * clip_norm)^2) to the clipped sum."""

    kind: ClassVar[str] = "local"
    noise_multiplier: float

    def __post_init__(self) -> None:
        super(LocalMechanism, self).__post_init__()
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError("noise_multiplier must be positive; without noise the mechanism is 'none'")

    def event(self) -> Any:
        """The ``dp_accounting.DpEvent`` of one round, for add-or-remove-one adjacency."""
        import dp_accounting  # more than a second; whoever only trains does not need it

        step = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_rate < 1.0:
            step = dp_accounting.PoissonSampledDpEvent(self.sampling_rate, step)
        return dp_accounting.SelfComposedDpEvent(step, self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoMechanism(_ClippedSteps):
    """The same steps without noise. Not private: every round costs infinity."""

    kind: ClassVar[str] = "none"

    @property
    def noise_multiplier(self) -> float:
        return 0.0

    def event(self) -> Any:
        """``NonPrivateDpEvent``: every accountant answers infinity."""
        import dp_accounting

        return dp_accounting.NonPrivateDpEvent()


Mechanism = LocalMechanism | NoMechanism
_KINDS: dict[str, type[LocalMechanism] | type[NoMechanism]] = {
    LocalMechanism.kind: LocalMechanism,
    NoMechanism.kind: NoMechanism,
}


def mechanism_of(plan: PrivacyPlan) -> Mechanism:
    """The mechanism that the plan prescribes for one round.

    Raises:
        UnaccountedMechanism: a plan of a newer version.
    """
    public = {
        "sampling_rate": plan.sampling_rate,
        "clip_norm": plan.clip_norm,
        "steps": plan.steps_per_round,
        "expected_records": plan.expected_records,
        "learning_rate": plan.learning_rate,
        "noise_multiplier": plan.noise_multiplier,
    }
    kind = _kind_named(plan.mechanism)
    return kind(**{field.name: public[field.name] for field in fields(kind)})  # type: ignore[arg-type]


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
    kind = _kind_named(values.get("kind", ""))
    if set(values) != {"kind"} | {field.name for field in fields(kind)}:
        raise ValueError(f"fields of mechanism {kind.kind!r} differ")
    counts = ("steps", "expected_records")
    numbers = {k: int(v) if k in counts else float(v) for k, v in values.items() if k != "kind"}
    mechanism = kind(**numbers)  # type: ignore[arg-type]
    if mechanism_fields(mechanism) != dict(values):
        raise ValueError("a number is not in its shortest exact form")
    return mechanism


def _kind_named(name: str) -> type[LocalMechanism] | type[NoMechanism]:
    if name not in _KINDS:
        raise UnaccountedMechanism(name)
    return _KINDS[name]

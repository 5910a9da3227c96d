"""The values that travel from privacy to protocol: a noised update, in the clear, inside the silo."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PrivateUpdate:
    """A silo's noised change of the trainable parameters. Never leaves the silo unmasked.

    ``values`` is float64 of shape (d,), d = number of trainable parameters, already noised and
    already divided by the public constants of the plan. Read-only; an array of that type is taken over.
    """

    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64).reshape(-1)
        if not np.isfinite(values).all():
            raise ValueError("an update must be finite")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:  # never print an update
        return f"PrivateUpdate(<{self.values.size} values>)"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ScaledUpdate:
    """A ``PrivateUpdate`` whose values are whole numbers of one public length, which take half of the memory.

    ``integers`` is int32 or int64 of shape (d,), noise included. Read-only; the array is taken over.
    """

    integers: NDArray[np.signedinteger[Any]]
    step: float
    """What an integer is worth."""

    def __post_init__(self) -> None:
        if self.integers.dtype not in (np.int32, np.int64) or self.integers.ndim != 1:
            raise ValueError("a scaled update is a vector of int32 or int64")
        if not math.isfinite(self.step):
            raise ValueError("an update must be finite")
        self.integers.setflags(write=False)

    @property
    def values(self) -> NDArray[np.float64]:
        """(d,) float64, anew."""
        values: NDArray[np.float64] = self.integers * np.float64(self.step)
        return values

    def __repr__(self) -> str:  # never print an update
        return f"ScaledUpdate(<{self.integers.size} integers>)"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class IntegerUpdate:
    """A silo's noised update in whole steps of the grid of the secure sum. Never leaves the silo unmasked.

    ``integers`` is int32 of shape (d,): minus the sum of integer gradients, with this silo's share of the
    noise. What a step is worth follows from the plan. Read-only; the array is taken over.
    """

    integers: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.integers.dtype != np.int32 or self.integers.ndim != 1:
            raise ValueError("an integer update is a vector of int32")
        self.integers.setflags(write=False)

    def __repr__(self) -> str:  # never print an update
        return f"IntegerUpdate(<{self.integers.size} integers>)"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class NoisedSums:
    """A silo's noised integer sums, all vectors of the plan one after another. Never leave the silo unmasked.

    ``integers`` is int64 of shape (entries of all vectors,), noise included. Read-only; the array is taken over.
    """

    integers: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.integers.dtype != np.int64 or self.integers.ndim != 1:
            raise ValueError("noised sums are a vector of int64")
        self.integers.setflags(write=False)

    def __repr__(self) -> str:  # never print an update
        return f"NoisedSums(<{self.integers.size} integers>)"


NoisedUpdate = PrivateUpdate | ScaledUpdate | IntegerUpdate | NoisedSums
"""What a silo releases, by mechanism."""

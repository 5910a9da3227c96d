"""The one value that travels from privacy to protocol: a noised update, in the clear, inside the silo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PrivateUpdate:
    """A silo's noised change of the trainable parameters. Never leaves the silo unmasked.

    ``values`` is float64 of shape (d,), d = number of trainable parameters, already noised and
    already divided by the public constants of the plan. Copied on entry and read-only.
    """

    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64, copy=True).reshape(-1)
        if not np.isfinite(values).all():
            raise ValueError("an update must be finite")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:  # never print an update
        return f"PrivateUpdate(<{self.values.size} values>)"

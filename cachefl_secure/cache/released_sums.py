"""What a cache keeps of a release: integer sums as they came out of the secure sum, and what to solve from them.

Not the solution. Every party computes the cache after a round and compares its digest with the record's, and linear
algebra gives other last bits on other machines (decision 0036). A head is solved where a model is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cachefl_secure.cache.class_statistics import ClassStatistics
from cachefl_secure.cache.closed_form import HeadKind
from cachefl_secure.cache.tensor_file import Schema, exact_float

SUMS_SCHEMA: Schema = {"class_sums": ("I64", 2), "gram": ("I64", 1)}
_FLOATS = ("noise_std", "regulariser", "gamma")
SUMS_FIELDS = frozenset({"head", "unit", *_FLOATS})


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ReleasedSums:
    """Public. Tensors are not copied and must not be written to.

    Raises:
        ValueError: shapes or dtypes disagree, or a number is out of range.
    """

    class_sums: Tensor
    """(N, C) int64, in steps of 1 / unit."""
    gram: Tensor
    """(C (C + 1) / 2,) int64, in the same steps: the upper triangle, row by row."""
    unit: int
    noise_std: float
    """Of the noise in each entry, in units of features: what all survivors that kept to the plan have added."""
    head: HeadKind
    regulariser: float
    gamma: float

    def __post_init__(self) -> None:
        sums, gram = self.class_sums, self.gram
        if (sums.dtype, gram.dtype) != (torch.int64, torch.int64) or (sums.ndim, gram.ndim) != (2, 1):
            raise ValueError("expected class_sums (N, C) and gram (C (C + 1) / 2,), both int64")
        if 0 in sums.shape or gram.shape[0] != sums.shape[1] * (sums.shape[1] + 1) // 2:
            raise ValueError("class_sums and gram disagree on C")
        if not 1 <= self.unit <= 1 << 24:
            raise ValueError("unit must be from 1 to 2^24")
        if not all(math.isfinite(getattr(self, name)) for name in _FLOATS) or self.noise_std < 0:
            raise ValueError("noise_std, regulariser and gamma must be finite")
        if self.regulariser <= 0 or self.gamma < 0:
            raise ValueError("regulariser must be positive, gamma not negative")

    @property
    def statistics(self) -> ClassStatistics:
        """In units of features, float64."""
        dim = self.class_sums.shape[1]
        gram = np.zeros((dim, dim))
        rows, columns = np.triu_indices(dim)
        gram[rows, columns] = gram[columns, rows] = self.gram.cpu().numpy() / self.unit
        return ClassStatistics(self.class_sums.cpu().numpy() / self.unit, gram, self.noise_std)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By the names of ``SUMS_SCHEMA``."""
        return {"class_sums": self.class_sums, "gram": self.gram}

    @property
    def fields(self) -> dict[str, str]:
        """Exact, by the names of ``SUMS_FIELDS``."""
        floats = {name: repr(float(getattr(self, name))) for name in _FLOATS}
        return {"head": str(self.head), "unit": str(self.unit), **floats}

    @property
    def pieces(self) -> list[bytes]:
        """All of it, for a digest."""
        arrays = (self.class_sums, self.gram)
        return [
            b"released-sums/1",
            *(text.encode() for _, text in sorted(self.fields.items())),
            *(array.cpu().numpy().astype("<i8").tobytes() for array in arrays),
        ]


def sums_of_file(tensors: Mapping[str, Tensor], fields: Mapping[str, str], file: str) -> ReleasedSums:
    """Inverse of ``tensors`` and ``fields``.

    Raises:
        ConfigError: a number that is not as this program writes it.
        ValueError: as ``ReleasedSums``, or no such head.
    """
    if not fields["unit"].isdecimal() or len(fields["unit"]) > 8 or fields["unit"][0] == "0":
        raise ValueError("unit is not a number as written by this program")
    floats = {name: exact_float(fields[name], name, file) for name in _FLOATS}
    return ReleasedSums(
        tensors["class_sums"],
        tensors["gram"],
        unit=int(fields["unit"]),
        head=HeadKind(fields["head"]),
        **floats,
    )

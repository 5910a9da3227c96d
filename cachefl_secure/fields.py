"""Types of the fields that all parties agree on: what may stand in a plan, checked where it is read."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta

Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
ClassName = Annotated[str, Meta(min_length=1, max_length=200)]
Unit = Annotated[float, Meta(gt=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0, le=1e12)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all agreed configuration: immutable, no unknown fields, finite numbers."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite")

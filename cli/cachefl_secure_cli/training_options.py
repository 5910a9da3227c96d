"""The options that decide what is trained, and how, shared by ``init`` and ``plan``."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cachefl_secure import plan


class Trained(enum.StrEnum):
    """As ``--trained`` takes it."""

    keys = "keys"
    class_residual = "class-residual"

    @property
    def in_plan(self) -> plan.Trained:
        return "keys" if self is Trained.keys else "class_residual"


TrainedOption = Annotated[
    Trained,
    typer.Option(
        "--trained",
        help="keys: every cache key by itself. class-residual: one change for all keys of a class, K times fewer "
        "numbers, for a small epsilon or many classes.",
    ),
]

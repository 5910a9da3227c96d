"""The options that decide what is trained, and how, shared by ``init`` and ``plan``."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from cachefl_secure_cli.panels import TRAINING

if TYPE_CHECKING:
    from cachefl_secure import plan


class Trained(enum.StrEnum):
    """As ``--trained`` takes it."""

    keys = "keys"
    class_residual = "class-residual"

    @property
    def in_plan(self) -> plan.Trained:
        return "keys" if self is Trained.keys else "class_residual"


class Server(enum.StrEnum):
    """As ``--server`` takes it."""

    mean = "mean"
    momentum = "momentum"
    adam = "adam"


ServerOption = Annotated[
    Server,
    typer.Option(
        "--server",
        help="What becomes of a round's mean update: added as it is, with momentum (FedAvgM), or by FedAdam. Everybody "
        "recomputes it from the published sums; it costs no privacy.",
        rich_help_panel=TRAINING,
    ),
]
ServerRate = Annotated[
    float | None,
    typer.Option(
        help="Of momentum and adam. Default: one less the momentum; with adam as far as noise alone should lead.",
        show_default=False,
        rich_help_panel=TRAINING,
    ),
]
ServerMomentum = Annotated[
    float,
    typer.Option(
        help="Of momentum, and the first of adam's two.",
        rich_help_panel=TRAINING,
    ),
]
Proximal = Annotated[
    float,
    typer.Option(
        help="FedProx, with several steps a round: before each further one the change so far shrinks by this part.",
        rich_help_panel=TRAINING,
    ),
]
ReplayWeight = Annotated[
    float,
    typer.Option(
        help="Weight of the synthetic images' own loss in every step of local or none. They are public: it is free.",
        rich_help_panel=TRAINING,
    ),
]
TrainedOption = Annotated[
    Trained,
    typer.Option(
        "--trained",
        help="keys: every cache key by itself. class-residual: one change for all keys of a class, K times fewer "
        "numbers to send.",
        rich_help_panel=TRAINING,
    ),
]

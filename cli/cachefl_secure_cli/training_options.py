"""The options that decide what is trained, and how, shared by ``init`` and ``plan``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachefl_secure_cli.panels import CACHE, TRAINING

if TYPE_CHECKING:
    from cachefl_secure import plan
    from cachefl_secure.federation.founding_choices import AlphaBetaSource


class Trained(enum.StrEnum):
    """As ``--trained`` takes it."""

    keys = "keys"
    class_residual = "class-residual"

    @property
    def in_plan(self) -> plan.Trained:
        return "keys" if self is Trained.keys else "class_residual"


class AlphaNorm(enum.StrEnum):
    """As ``--alpha-norm`` takes it."""

    sum = "sum"
    mean = "mean"


GIVEN, TABLE, LEAVE_ONE_OUT, GRID = "given", "table", "leave-one-out", "grid:"
"""What ``--alpha-beta`` takes; a directory follows the last."""


AlphaNormOption = Annotated[
    AlphaNorm,
    typer.Option(
        "--alpha-norm",
        help="What alpha weighs: the sum of a class's K affinities, as published, or their mean, so that one alpha "
        "suits every K.",
        rich_help_panel=CACHE,
    ),
]
AlphaBetaOption = Annotated[
    str,
    typer.Option(
        "--alpha-beta",
        metavar="given|table|leave-one-out|grid:DIRECTORY",
        help="given: as --alpha and --beta say, and where they do not, --dataset. table: the same, and refused if "
        "--dataset names no data set that partition knows. leave-one-out: those that best classify each synthetic image by the "
        "others; needs two a class. grid:DIRECTORY: those that a finished federation with --mechanism grid chose, of "
        "which that is a party's directory.",
        rich_help_panel=CACHE,
    ),
]


def alpha_beta_source(text: str) -> AlphaBetaSource:
    """What ``--alpha-beta`` says; numbers of a table are given ones by then.

    Raises:
        ConfigError: none of the four.
    """
    from cachefl_secure.errors import ConfigError

    if text in (GIVEN, TABLE):
        return "given"
    if text == LEAVE_ONE_OUT:
        return "leave-one-out"
    if text.startswith(GRID) and text != GRID:
        return Path(text.removeprefix(GRID)).expanduser()
    raise ConfigError(
        "--alpha-beta", "", f"{text!r} is none of given, table, leave-one-out and grid:DIRECTORY"
    )


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

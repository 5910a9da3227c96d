"""Options of init about alpha and beta: the numbers, what alpha weighs, and who chooses them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachefl_secure_cli.panels import CACHE

if TYPE_CHECKING:
    from cachefl_secure.datasets.task import Task
    from cachefl_secure.federation.founding_choices import AlphaBetaSource


class AlphaNorm(enum.StrEnum):
    """As ``--alpha-norm`` takes it."""

    sum = "sum"
    mean = "mean"


GIVEN, TABLE, LEAVE_ONE_OUT, GRID = "given", "table", "leave-one-out", "grid:"
"""What ``--alpha-beta`` takes; a directory follows the last."""

DEFAULT_ALPHA, DEFAULT_BETA = 10.0, 3.0
Alpha = Annotated[
    float | None,
    typer.Option(
        help=f"Weight of the cache against the text classifier. Default: that of --dataset, else {DEFAULT_ALPHA:g}.",
        rich_help_panel=CACHE,
        show_default=False,
    ),
]
Beta = Annotated[
    float | None,
    typer.Option(
        help=f"Sharpness of the affinities. Default: that of --dataset, else {DEFAULT_BETA:g}.",
        rich_help_panel=CACHE,
        show_default=False,
    ),
]
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

_ORIGINS = {
    "given": "given",
    "table": "from the data set's table",
    "default": "default",
    "leave-one-out": "by leave-one-out",
    "grid": "by the grid",
}
"""Where a number comes from, as ``--json`` and as people read it."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Alpha and beta, and who says so (a key of ``_ORIGINS``). With leave-one-out and a grid the numbers are not
    known yet."""

    alpha: float
    alpha_from: str
    beta: float
    beta_from: str

    def in_words(self, alpha: float, beta: float) -> str:
        """The plan's numbers with their origins: ``3 and 1 (from the data set's table)``."""
        if self.alpha_from == self.beta_from:
            return f"{alpha:g} and {beta:g} ({_ORIGINS[self.alpha_from]})"
        return f"{alpha:g} ({_ORIGINS[self.alpha_from]}) and {beta:g} ({_ORIGINS[self.beta_from]})"


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


def weights_of(chosen_by: str, alpha: float | None, beta: float | None, task: Task | None) -> Weights:
    """Alpha and beta with their origins: by hand, else of the table, else the defaults.

    ``chosen_by`` is what ``--alpha-beta`` says.

    Raises:
        ConfigError: by hand although something else is to choose them, or the table is asked for and there is none.
    """
    from cachefl_secure.errors import ConfigError

    data_set = None if task is None else task.data_set
    if chosen_by not in (GIVEN, TABLE):
        for option, given in (("--alpha", alpha), ("--beta", beta)):
            if given is not None:
                raise ConfigError(
                    option, "", f"is chosen by --alpha-beta {chosen_by}: give one of the two only"
                )
        origin = chosen_by.partition(":")[0]
        return Weights(DEFAULT_ALPHA, origin, DEFAULT_BETA, origin)
    if chosen_by == TABLE and data_set is None:
        raise ConfigError("--alpha-beta", "", "table needs --dataset, of a data set that partition knows")
    known = (None, None) if data_set is None else (data_set.alpha, data_set.beta)
    return Weights(*_weight(alpha, known[0], DEFAULT_ALPHA), *_weight(beta, known[1], DEFAULT_BETA))


def _weight(given: float | None, of_table: float | None, default: float) -> tuple[float, str]:
    if given is not None:
        return given, "given"
    return (default, "default") if of_table is None else (of_table, "table")

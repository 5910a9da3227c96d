"""The options that decide about privacy, shared by ``init``, which founds, and ``plan``, which only tells.

Their defaults, and what is made of them, are in ``given_privacy``.
"""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from cachefl_secure_cli.panels import PRIVACY, SECURE_SUM, TRAINING


class MechanismChoice(enum.StrEnum):
    """As ``--mechanism`` takes it."""

    distributed = "distributed"
    local = "local"
    statistics = "statistics"
    grid = "grid"
    none = "none"


class HeadChoice(enum.StrEnum):
    """As ``--head`` takes it."""

    gda = "gda"
    ridge = "ridge"


Mechanism = Annotated[
    MechanismChoice,
    typer.Option(
        help="distributed: one step a round, and the silos' shares of noise add up in the secure sum. "
        "local: DP-SGD in every silo, with all its noise. statistics: no training; one release of class sums and Gram "
        "matrix, from which a linear head is solved. grid: no training; one release of how many records each alpha and "
        "beta classifies rightly. none: no privacy.",
        rich_help_panel=PRIVACY,
    ),
]
Epsilon = Annotated[
    float | None,
    typer.Option(
        help="After all rounds: the aggregate epsilon with distributed and statistics (default 2) and with grid (default "
        "1), the local one with local (default 8).",
        show_default=False,
        rich_help_panel=PRIVACY,
    ),
]
EpsilonLocal = Annotated[
    float,
    typer.Option(
        help="With distributed, statistics and grid: the most that a silo's local epsilon may become, which holds if the "
        "secure sum is broken.",
        rich_help_panel=PRIVACY,
    ),
]
Delta = Annotated[
    float | None,
    typer.Option(
        help="At most a tenth of one over the number of records of any silo. Default: 1e-5, or a tenth of one over "
        "--expected-records if that is less.",
        show_default=False,
        rich_help_panel=PRIVACY,
    ),
]
Rounds = Annotated[
    int,
    typer.Option(
        help="Rounds the noise is calibrated for.",
        rich_help_panel=TRAINING,
    ),
]
SamplingRate = Annotated[
    float,
    typer.Option(
        help="1 is full batch; below, Poisson sampling.",
        rich_help_panel=TRAINING,
    ),
]
StepsPerRound = Annotated[
    int,
    typer.Option(
        help="Local steps in each round; more than one with --mechanism local only.",
        rich_help_panel=TRAINING,
    ),
]
ClipNorm = Annotated[
    float,
    typer.Option(
        help="Largest norm of one record's gradient.",
        rich_help_panel=TRAINING,
    ),
]
ExpectedRecords = Annotated[
    int,
    typer.Option(
        help="A public, typical number of records a silo: the divisor, and with statistics and grid what sums "
        "may reach. Not a count of any.",
        rich_help_panel=PRIVACY,
    ),
]
MinimumCohort = Annotated[
    int,
    typer.Option(
        help="Fewest silos that a round begins with; at least 3.",
        rich_help_panel=SECURE_SUM,
    ),
]
MinimumSurvivors = Annotated[
    int,
    typer.Option(
        help="Fewest updates in a sum. More make each silo's share of the noise smaller and fewer dropouts bearable; "
        "with 2, each of two survivors learns the other's.",
        rich_help_panel=SECURE_SUM,
    ),
]
Colluders = Annotated[
    int,
    typer.Option(
        help="Silos that may collude with the coordinator.",
        rich_help_panel=SECURE_SUM,
    ),
]
Head = Annotated[
    HeadChoice,
    typer.Option(
        help="With statistics: Gaussian discriminant analysis, or ridge regression to one-hot labels.",
        rich_help_panel=PRIVACY,
    ),
]
Gamma = Annotated[
    float,
    typer.Option(
        help="With statistics: how many times as loud as text classifier and cache the head is.",
        rich_help_panel=PRIVACY,
    ),
]
Alphas = Annotated[
    str,
    typer.Option(
        help="With grid: the alphas to try, separated by commas; each with every beta. Fewer need less noise.",
        rich_help_panel=PRIVACY,
    ),
]
Betas = Annotated[
    str,
    typer.Option(
        help="With grid: the betas to try, separated by commas.",
        rich_help_panel=PRIVACY,
    ),
]

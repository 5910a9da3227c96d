"""The options that decide about privacy, shared by ``init``, which founds, and ``plan``, which only tells."""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cachefl_secure_cli.panels import PRIVACY, SECURE_SUM, TRAINING

if TYPE_CHECKING:
    from cachefl_secure.federation.calibration import MechanismName, PrivacyChoices
    from cachefl_secure.federation.grid_choices import GridChoices
    from cachefl_secure.federation.one_release import StatisticsChoices


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
DEFAULT_ROUNDS = 20
DEFAULT_CLIP_NORM, DEFAULT_GAMMA = 0.1, 8.0
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


DEFAULT_ALPHAS, DEFAULT_BETAS = "1,3,10,30,100", "1,3,9"
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


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """In rising order, each once."""
    from cachefl_secure.errors import ConfigError

    try:
        numbers = {float(part) for part in text.split(",")}
    except ValueError:
        numbers = {math.nan}
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(option, "", f"{text!r}: write numbers separated by commas")
    return tuple(sorted(numbers))


def grid_choices(
    *,
    epsilon: float | None,
    epsilon_local: float,
    delta: float | None,
    expected_records: int,
    alphas: str,
    betas: str,
) -> GridChoices:
    """What was chosen of a grid.

    Raises:
        ConfigError: words where numbers are due.
    """
    from cachefl_secure.federation.calibration import default_delta
    from cachefl_secure.federation.grid_choices import DEFAULT_EPSILON_AGGREGATE, GridChoices

    return GridChoices(
        alphas=_numbers("--alphas", alphas),
        betas=_numbers("--betas", betas),
        epsilon=DEFAULT_EPSILON_AGGREGATE if epsilon is None else epsilon,
        epsilon_local=epsilon_local,
        delta=default_delta(expected_records) if delta is None else delta,
        expected_records=expected_records,
    )


def release_choices(
    *,
    epsilon: float | None,
    epsilon_local: float,
    delta: float | None,
    expected_records: int,
    head: HeadChoice,
    gamma: float,
) -> StatisticsChoices:
    """What was chosen of one release of statistics."""
    from cachefl_secure.federation.calibration import default_delta
    from cachefl_secure.federation.one_release import DEFAULT_EPSILON_AGGREGATE, StatisticsChoices

    return StatisticsChoices(
        epsilon=DEFAULT_EPSILON_AGGREGATE if epsilon is None else epsilon,
        epsilon_local=epsilon_local,
        delta=default_delta(expected_records) if delta is None else delta,
        expected_records=expected_records,
        head=head.value,
        gamma=gamma,
    )


def privacy_choices(
    *,
    mechanism: MechanismChoice,
    epsilon: float | None,
    epsilon_local: float,
    delta: float | None,
    rounds: int,
    sampling_rate: float,
    steps_per_round: int,
    clip_norm: float,
    expected_records: int,
    learning_rate: float | None = None,
    proximal: float = 0.0,
    replay_weight: float = 0.0,
    head: HeadChoice,
    gamma: float,
    alphas: str,
    betas: str,
) -> PrivacyChoices | StatisticsChoices | GridChoices:
    """What was chosen, with the defaults that depend on other choices.

    Raises:
        ConfigError: an option that does nothing with the mechanism.
    """
    from cachefl_secure.errors import ConfigError
    from cachefl_secure.federation.calibration import PrivacyChoices, default_delta

    training = {
        "--rounds": rounds not in (1, DEFAULT_ROUNDS),
        "--sampling-rate": sampling_rate != 1.0,
        "--clip-norm": clip_norm != DEFAULT_CLIP_NORM,
        "--steps-per-round": steps_per_round != 1,
        "--learning-rate": learning_rate is not None,
        "--proximal": proximal != 0.0,
        "--replay-weight": replay_weight != 0.0,
    }
    head_alone = {"--head": head is not HeadChoice.gda, "--gamma": gamma != DEFAULT_GAMMA}
    grid_alone = {"--alphas": alphas != DEFAULT_ALPHAS, "--betas": betas != DEFAULT_BETAS}
    released = mechanism in (MechanismChoice.statistics, MechanismChoice.grid)
    wrong = [
        (training, not released, f"is about training; with --mechanism {mechanism.value} there is none"),
        (
            head_alone,
            mechanism is MechanismChoice.statistics,
            "is of one release: it goes with --mechanism statistics",
        ),
        (
            grid_alone,
            mechanism is MechanismChoice.grid,
            "is of a grid: it goes with --mechanism grid",
        ),
    ]
    for options, fits, reason in wrong:
        for option, given in options.items():
            if given and not fits:
                raise ConfigError(option, "", reason)
    if mechanism is MechanismChoice.statistics:
        return release_choices(
            epsilon=epsilon,
            epsilon_local=epsilon_local,
            delta=delta,
            expected_records=expected_records,
            head=head,
            gamma=gamma,
        )
    if mechanism is MechanismChoice.grid:
        return grid_choices(
            epsilon=epsilon,
            epsilon_local=epsilon_local,
            delta=delta,
            expected_records=expected_records,
            alphas=alphas,
            betas=betas,
        )
    return PrivacyChoices(
        mechanism=cast("MechanismName", mechanism.value),
        epsilon=epsilon,
        epsilon_local=epsilon_local,
        delta=default_delta(expected_records) if delta is None else delta,
        rounds=rounds,
        sampling_rate=sampling_rate,
        steps_per_round=steps_per_round,
        clip_norm=clip_norm,
        expected_records=expected_records,
        learning_rate=learning_rate,
        proximal=proximal,
        replay_weight=replay_weight,
    )

"""plan: what privacy will cost, before anybody trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachefl_secure.wording import counted
from cachefl_secure_cli import privacy_options as options
from cachefl_secure_cli.failures import explained
from cachefl_secure_cli.given_privacy import USUAL, GivenPrivacy
from cachefl_secure_cli.output import Json, console, epsilon_text, print_json, table
from cachefl_secure_cli.training_options import Trained, TrainedOption

if TYPE_CHECKING:
    from cachefl_secure.federation.forecasting import Forecast


@explained
def command(
    invite: Annotated[
        Path | None,
        typer.Argument(
            help="An invite, or a coordinator's or silo's directory: its plan is shown, and the options below do not "
            "count. Without it: the plan that init would make of the options.",
            show_default=False,
        ),
    ] = None,
    mechanism: options.Mechanism = USUAL.mechanism,
    epsilon: options.Epsilon = USUAL.epsilon,
    epsilon_local: options.EpsilonLocal = USUAL.epsilon_local,
    delta: options.Delta = USUAL.delta,
    rounds: options.Rounds = USUAL.rounds,
    sampling_rate: options.SamplingRate = USUAL.sampling_rate,
    steps_per_round: options.StepsPerRound = USUAL.steps_per_round,
    clip_norm: options.ClipNorm = USUAL.clip_norm,
    expected_records: options.ExpectedRecords = USUAL.expected_records,
    head: options.Head = USUAL.head,
    gamma: options.Gamma = USUAL.gamma,
    alphas: options.Alphas = USUAL.alphas,
    betas: options.Betas = USUAL.betas,
    minimum_cohort: options.MinimumCohort = 3,
    minimum_survivors: options.MinimumSurvivors = 3,
    colluders: options.Colluders = 1,
    number_of_classes: Annotated[int, typer.Option(min=2, help="N: classes of the task.")] = 10,
    images_per_class: Annotated[
        int, typer.Option("-k", "--images-per-class", min=1, help="K: cache keys a class.")
    ] = 4,
    trained: TrainedOption = Trained.keys,
    feature_dim: Annotated[int, typer.Option(min=1, help="C: dimension of the encoder's features.")] = 512,
    json: Json = False,
) -> None:
    """Show what rounds will cost in privacy: noise, both epsilons, ten rounds beyond the plan, the most rounds there can be.

    Nothing is written and nothing private is read. No torch, no network.

    Example: cachefl-secure plan --epsilon 1 --rounds 30 --minimum-cohort 10 --colluders 2
    """
    from cachefl_secure.federation.calibration import Sizes
    from cachefl_secure.federation.enrolment import read_invite
    from cachefl_secure.federation.forecasting import (
        forecast,
        forecast_grid,
        forecast_of,
        forecast_statistics,
    )
    from cachefl_secure.federation.founding import INVITE_FILE
    from cachefl_secure.federation.founding_checks import check_secure_sum
    from cachefl_secure.federation.grid_choices import GridChoices
    from cachefl_secure.federation.one_release import StatisticsChoices
    from cachefl_secure.plan import SecureSumPlan

    if invite is not None:
        found = forecast_of(read_invite(invite / INVITE_FILE if invite.is_dir() else invite))
    else:
        secure_sum = SecureSumPlan(
            minimum_cohort=minimum_cohort, minimum_survivors=minimum_survivors, colluders=colluders
        )
        check_secure_sum(secure_sum)
        sizes = Sizes(
            trained_rows=number_of_classes * (1 if trained is Trained.class_residual else images_per_class),
            feature_dim=feature_dim,
            cohort_size=minimum_cohort,
            honest_survivors=secure_sum.honest_survivors,
        )
        choices = GivenPrivacy(
            mechanism=mechanism,
            epsilon=epsilon,
            epsilon_local=epsilon_local,
            delta=delta,
            rounds=rounds,
            sampling_rate=sampling_rate,
            steps_per_round=steps_per_round,
            clip_norm=clip_norm,
            expected_records=expected_records,
            head=head,
            gamma=gamma,
            alphas=alphas,
            betas=betas,
        ).choices()
        if isinstance(choices, StatisticsChoices):
            shape = {"number_of_classes": number_of_classes, "feature_dim": feature_dim}
            section = choices.plan(**shape, honest_survivors=sizes.honest_survivors)
            found = forecast_statistics(section, secure_sum, **shape)
        elif isinstance(choices, GridChoices):
            found = forecast_grid(choices.plan(honest_survivors=sizes.honest_survivors), secure_sum)
        else:
            found = forecast(choices.plan(sizes), secure_sum, sizes)
    if json:
        print_json("plan", _plain(found))
        return
    _print(found)


def _print(found: Forecast) -> None:
    from cachefl_secure.privacy.mechanism import View

    if found.mechanism.kind == "none":
        console().print("NOT PRIVATE: mechanism none adds no noise; every round costs infinity")
        return
    rows = [
        (
            f"{point.rounds}{_remark(point.rounds, found)}",
            epsilon_text(point.cost.aggregate),
            epsilon_text(point.cost.local),
        )
        for point in found.points
    ]
    local, together = found.noise_in(View.LOCAL), found.noise_in(View.AGGREGATE)
    caption = (
        f"mechanism {found.mechanism.kind}; delta {found.delta:g}; noise multiplier {local:g} in each silo, {together:.4g} "
        f"behind the secure sum of at least {found.survivors} silos of which {found.colluders} collude"
    )
    console().print(
        table("what rounds cost", ("rounds", "aggregate epsilon", "local epsilon"), rows, caption=caption)
    )
    if limited := _limited(found):
        console().print(limited)
    console().print(
        f"A silo with the planned caps, aggregate {found.caps.aggregate:g} and local {found.caps.local:g}, "
        f"stops by itself after {counted(found.most_rounds, 'round')}."
    )


def _limited(found: Forecast) -> str:
    """Why the plan ends below the epsilon that was asked for, if it does."""
    (planned,) = [point.cost for point in found.points if point.rounds == found.rounds]
    if planned.aggregate > 0.98 * found.caps.aggregate:
        return ""
    return (
        f"The aggregate epsilon stays below {found.caps.aggregate:g}, because the local one may be at most "
        f"{found.caps.local:g}: --epsilon-local raises that."
    )


def _remark(rounds: int, found: Forecast) -> str:
    if rounds == found.rounds:
        return " (the plan)"
    return " (ten more)" if rounds > found.rounds else ""


def _plain(found: Forecast) -> dict[str, Any]:
    from cachefl_secure.privacy.mechanism import View, mechanism_fields

    return {
        "mechanism": mechanism_fields(found.mechanism),
        "delta": found.delta,
        "rounds": found.rounds,
        "survivors": found.survivors,
        "colluders": found.colluders,
        "noise_multiplier_local": found.noise_in(View.LOCAL),
        "noise_multiplier_aggregate": found.noise_in(View.AGGREGATE),
        "points": [dataclasses.asdict(point) for point in found.points],
        "caps": dataclasses.asdict(found.caps),
        "most_rounds": found.most_rounds,
    }

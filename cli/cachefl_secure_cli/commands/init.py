"""init: found a federation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachefl_secure.wording import counted
from cachefl_secure_cli import panels
from cachefl_secure_cli import picture_options as pictures
from cachefl_secure_cli import privacy_options as options
from cachefl_secure_cli import task_options as tasks
from cachefl_secure_cli import weight_options as weighing
from cachefl_secure_cli.failures import explained, say
from cachefl_secure_cli.given_privacy import USUAL, GivenPrivacy
from cachefl_secure_cli.options import Device, DeviceOption, Offline, resolve_device
from cachefl_secure_cli.output import Json, console, print_json, progress_bar, table
from cachefl_secure_cli.privacy_options import MechanismChoice
from cachefl_secure_cli.training_options import (
    Proximal,
    ReplayWeight,
    Server,
    ServerMomentum,
    ServerOption,
    ServerRate,
    Trained,
    TrainedOption,
)

if TYPE_CHECKING:
    from cachefl_secure.federation.founding import Founded
    from cachefl_secure.federation.founding_choices import FoundingChoices
    from cachefl_secure.plan import FederationPlan
    from cachefl_secure.privacy.accounting import Cost


@explained
def command(
    directory: Annotated[
        Path, typer.Argument(help="A new directory for the coordinator.", show_default=False)
    ],
    classes: tasks.Classes = "",
    dataset: tasks.Dataset = "",
    root: tasks.Root = None,
    name: Annotated[str, typer.Option(help="What this federation is called.")] = "federation",
    clip: Annotated[
        str | None,
        typer.Option(
            help="The frozen CLIP: embedded, local-dir:PATH, hf-hub:NAME, or an open_clip architecture such as "
            "RN50 (with --pretrained). Default: embedded, which reads digits.",
            show_default=False,
            rich_help_panel=panels.CLASSES,
        ),
    ] = None,
    pretrained: Annotated[
        str,
        typer.Option(
            help="open_clip's tag or a .safetensors file, for an architecture.",
            rich_help_panel=panels.CLASSES,
        ),
    ] = "",
    template: tasks.Template = None,
    generator: pictures.Generator = None,
    prompts: pictures.Prompts = "paper",
    images_per_class: Annotated[
        int,
        typer.Option("-k", "--images-per-class", help="K: cache keys a class.", rich_help_panel=panels.CACHE),
    ] = 4,
    candidates: pictures.Candidates = None,
    steps: pictures.Steps = None,
    guidance: pictures.Guidance = None,
    generator_revision: pictures.Revision = None,
    licence: pictures.Licence = "",
    offload: pictures.Offload = False,
    offline: Offline = False,
    alpha: weighing.Alpha = None,
    beta: weighing.Beta = None,
    alpha_norm: weighing.AlphaNormOption = weighing.AlphaNorm.sum,
    alpha_beta: weighing.AlphaBetaOption = weighing.GIVEN,
    mechanism: options.Mechanism = USUAL.mechanism,
    not_private: Annotated[
        bool,
        typer.Option(
            "--not-private",
            help="Confirms --mechanism none: silos get no privacy guarantee.",
            rich_help_panel=panels.PRIVACY,
        ),
    ] = False,
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
    trained: TrainedOption = Trained.keys,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Length of a step if all gradients agree. Default: as long as the noise allows.",
            rich_help_panel=panels.TRAINING,
        ),
    ] = USUAL.learning_rate,
    proximal: Proximal = USUAL.proximal,
    replay_weight: ReplayWeight = USUAL.replay_weight,
    server: ServerOption = Server.mean,
    server_rate: ServerRate = None,
    server_momentum: ServerMomentum = 0.9,
    minimum_cohort: options.MinimumCohort = 3,
    minimum_survivors: options.MinimumSurvivors = 3,
    colluders: options.Colluders = 1,
    engine: Annotated[
        str,
        typer.Option(
            help="What carries messages between sites: a folder that all reach (dir:///shared/federation), an "
            "object store (s3://BUCKET/PATH, gs://, az://, sftp://), or NVIDIA FLARE's server on this machine "
            "(nvflare+grpc://HOST:PORT). Default: none, all parties on this machine.",
            show_default=False,
            rich_help_panel=panels.MESSAGES,
        ),
    ] = "",
    seed: Annotated[
        int,
        typer.Option(
            help="Of the synthetic images. Not of any noise or key.", rich_help_panel=panels.PICTURES
        ),
    ] = 0,
    device: DeviceOption = Device.auto,
    json: Json = False,
) -> None:
    """Found a federation: generate images, build the cache, calibrate the noise, write the invite.

    Nothing private is read. Give the invite to every silo and read out its fingerprint by phone.

    Example: cachefl-secure init coordinator --classes cat,dog,horse --generator ./my-generator --clip RN50
    --pretrained openai
    """
    import dataclasses

    from cachefl_secure.errors import ConfigError
    from cachefl_secure.federation.clip_source import ClipSource
    from cachefl_secure.federation.founding import found_federation
    from cachefl_secure.federation.founding_checks import check_choices
    from cachefl_secure.federation.founding_choices import FoundingChoices
    from cachefl_secure.plan import SecureSumPlan
    from cachefl_secure.transport.engines import check_engine, prepare_coordinator

    if mechanism is MechanismChoice.none and not not_private:
        raise ConfigError("--mechanism", "", "none gives no privacy at all; confirm with --not-private")
    task = tasks.task_of(dataset, root, wants_classes=not classes)
    chosen_by = weighing.alpha_beta_source(alpha_beta)
    weights = weighing.weights_of(alpha_beta, alpha, beta, task)
    source, how = pictures.picture_source(
        generator,
        clip,
        prompts=prompts,
        candidates=candidates,
        steps=steps,
        guidance=guidance,
        revision=generator_revision,
        licence=licence,
        offload=offload,
        offline=offline,
    )
    choices = FoundingChoices(
        name=name,
        classes=tasks.classes_of(classes, task, clip),
        templates=tasks.templates_of(template, task, clip),
        clip=ClipSource.parse(clip or "embedded", pretrained),
        generator=source,
        pictures=how,
        images_per_class=images_per_class,
        alpha=weights.alpha,
        beta=weights.beta,
        alpha_norm=alpha_norm.value,
        alpha_beta=chosen_by,
        trained=trained.in_plan,
        server=server.value,
        server_rate=server_rate,
        server_momentum=server_momentum,
        rng_seed=seed,
        privacy=GivenPrivacy(
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
            learning_rate=learning_rate,
            proximal=proximal,
            replay_weight=replay_weight,
        ).choices(),
        secure_sum=SecureSumPlan(
            minimum_cohort=minimum_cohort, minimum_survivors=minimum_survivors, colluders=colluders
        ),
        engine=engine,
    )
    check_choices(directory, choices)  # before torch is imported, which alone takes seconds
    check_engine(engine, founding=True)
    pictures.tell_of_fetching(generator, choices)
    _tell_of_choices(choices, weights)
    choices = dataclasses.replace(choices, device=resolve_device(device))
    with progress_bar(quiet=json) as progress:
        founded = found_federation(directory, choices, progress)
    prepare_coordinator(directory)
    pictures.tell_of_keys(founded.first_keys)
    if json:
        print_json("init", _summary(founded, engine, weights))
    else:
        _tell(founded, engine, weights, after_grid=isinstance(chosen_by, Path))


def _tell_of_choices(choices: FoundingChoices, weights: weighing.Weights) -> None:
    """What is legal and may surprise."""
    from cachefl_secure.federation.clip_source import LOCAL_DIR
    from cachefl_secure.federation.founding_choices import TEXT

    tasks.tell_of_classes(choices.classes)
    if choices.alpha_norm == "mean" and weights.alpha_from == "table":
        say(
            "the table's alpha is meant for the sum of a class's affinities: with --alpha-norm mean choose another"
        )
    if choices.alpha_beta == "leave-one-out" and choices.generator == TEXT:
        say(
            "there are no pictures with --generator text: leave-one-out chooses alpha and beta by sentences about the "
            "classes, which lie apart from pictures"
        )
    privacy = choices.privacy
    if privacy.delta * privacy.expected_records > 0.1 and getattr(privacy, "mechanism", "") != "none":
        say(
            f"with --delta {privacy.delta:g} a silo of more than {math.floor(0.1 / privacy.delta):,} records refuses to "
            f"join, and {privacy.expected_records:,} are expected"
        )
    if choices.clip.model == LOCAL_DIR:
        say(
            f"every silo needs the files of {choices.clip.local_dir} and says where they lie: "
            "`join --clip local-dir:PATH`"
        )


def _summary(founded: Founded, engine: str, weights: weighing.Weights) -> dict[str, object]:
    from cachefl_secure.privacy.terms import planned_cost_of

    keys, plan = founded.first_keys, founded.plan
    planned, without_picture = planned_cost_of(plan.privacy), sum(keys.without_picture.values())
    return {
        "federation_id": plan.federation_id,
        "fingerprint": founded.fingerprint,
        "invite": str(founded.invite),
        "engine": engine,
        "alpha": plan.cache.alpha,
        "beta": plan.cache.beta,
        "alpha_from": weights.alpha_from,
        "beta_from": weights.beta_from,
        "noise_multiplier": plan.privacy.noise_multiplier,
        "learning_rate": getattr(plan.privacy, "learning_rate", None),
        "mechanism": plan.privacy.mechanism,
        "epsilon_local": planned.local,
        "epsilon_aggregate": planned.aggregate,
        "delta": plan.privacy.delta,
        "synthetic_images": plan.number_of_keys - without_picture,
        "keys_without_picture": without_picture,
        "misread_pictures": keys.misread,
        "origin": {"kind": keys.origin.kind, "name": keys.origin.name, "licence": keys.origin.licence},
    }


def _tell(founded: Founded, engine: str, weights: weighing.Weights, *, after_grid: bool) -> None:
    from cachefl_secure.crypto.spoken import in_words
    from cachefl_secure.privacy.terms import planned_cost_of

    keys, plan = founded.first_keys, founded.plan
    planned = planned_cost_of(plan.privacy)
    pictures_kept = plan.number_of_keys - sum(keys.without_picture.values())
    rows = [
        ("pictures kept for the cache", str(pictures_kept)),
        ("they come from", f"{keys.origin.name} ({keys.origin.licence})"),
        ("alpha and beta", weights.in_words(plan.cache.alpha, plan.cache.beta)),
        ("numbers a silo sends", f"{plan.number_of_parameters:,}"),
        ("noise multiplier", f"{plan.privacy.noise_multiplier:g}"),
        *_what_is_made(plan),
        *_privacy_rows(plan, planned),
        *([("messages go by", engine)] if engine else []),
        ("fingerprint", founded.fingerprint),
        ("the same in words", in_words(founded.fingerprint)),
        ("invite", str(founded.invite)),
    ]
    console().print(table(f"federation {plan.name!r}", ("", ""), rows))
    _tell_of_tighter_local(plan)
    say("send the invite to every silo; read the fingerprint to them over another channel")
    _tell_of_shared_budget(plan, after_grid=after_grid)


def _tell_of_shared_budget(plan: FederationPlan, *, after_grid: bool) -> None:
    """What silos must know where a grid and a training are charged to one ledger."""
    if plan.privacy.mechanism == "grid":
        say(
            "silos that are to train with what it chooses join this one with --epsilon-cap and --epsilon-cap-aggregate "
            "that leave room for the training: the caps of the first ledger bind"
        )
    if after_grid:
        say(
            "silos that took part in the grid join with `--ledger DIRECTORY_OF_THE_GRID`: both are charged to one budget"
        )


def _tell_of_tighter_local(plan: FederationPlan) -> None:
    """Where the bound on the local epsilon asks for more noise than the aggregate one did."""
    reached = _tighter_aggregate(plan)
    if reached is not None:
        say(
            f"the bound on the local epsilon asks for more noise: the aggregate one will be {reached:.3g} after all "
            "rounds; raise --epsilon-local for what was asked"
        )


def _tighter_aggregate(plan: FederationPlan) -> float | None:
    """What the planned rounds cost, where that is clearly less than the aggregate epsilon that was asked for."""
    from cachefl_secure.privacy.accounting import cost_of
    from cachefl_secure.privacy.mechanism import mechanism_of
    from cachefl_secure.privacy_plan import DistributedPlan, ReleasePlan

    section = plan.privacy
    if not isinstance(section, DistributedPlan | ReleasePlan):
        return None
    reached = cost_of([(mechanism_of(plan), section.rounds)], section.delta).aggregate
    return reached if reached < 0.99 * section.epsilon_aggregate else None


def _what_is_made(plan: FederationPlan) -> list[tuple[str, str]]:
    from cachefl_secure.privacy_plan import GridPlan, StatisticsPlan

    if isinstance(plan.privacy, GridPlan):
        alphas, betas = (
            ", ".join(f"{x:g}" for x in values) for values in (plan.privacy.alphas, plan.privacy.betas)
        )
        return [("alphas and betas to try", f"{alphas} and {betas}")]
    if isinstance(plan.privacy, StatisticsPlan):
        return [("linear head", f"{plan.privacy.head}, gamma {plan.privacy.gamma:g}")]
    return [("learning rate", f"{plan.privacy.learning_rate:g}")]


def _privacy_rows(plan: FederationPlan, planned: Cost) -> list[tuple[str, str]]:
    """Both epsilons, each with what it rests on."""
    if plan.privacy.mechanism == "none":
        return [("privacy", "NOT PRIVATE: no noise")]
    times = "one release" if plan.is_one_release else counted(plan.privacy.rounds, "round")
    after = f"delta {plan.privacy.delta:g}, {times}"
    section = plan.secure_sum
    trust = f"at most {section.colluders} collude, {section.guaranteed_survivors} survive every round"
    reached = _tighter_aggregate(plan)
    aggregate = (
        f"{planned.aggregate:g}" if reached is None else f"{reached:.3g}, of {planned.aggregate:g} allowed"
    )
    return [
        ("mechanism", plan.privacy.mechanism),
        ("aggregate epsilon", f"{aggregate} ({after}; {trust})"),
        ("local epsilon", f"{planned.local:g} ({after}; nobody else is trusted)"),
    ]

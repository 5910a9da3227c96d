"""init: found a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachefl_secure_cli import founding_words as telling
from cachefl_secure_cli import panels
from cachefl_secure_cli import picture_options as pictures
from cachefl_secure_cli import privacy_options as options
from cachefl_secure_cli import task_options as tasks
from cachefl_secure_cli import weight_options as weighing
from cachefl_secure_cli.failures import explained
from cachefl_secure_cli.given_privacy import USUAL, GivenPrivacy
from cachefl_secure_cli.options import Device, DeviceOption, Offline, resolve_device
from cachefl_secure_cli.output import Json, print_json, progress_bar
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
    telling.tell_of_choices(choices, weights)
    choices = dataclasses.replace(choices, device=resolve_device(device))
    with progress_bar(quiet=json) as progress:
        founded = found_federation(directory, choices, progress)
    prepare_coordinator(directory)
    pictures.tell_of_keys(founded.first_keys)
    if json:
        print_json("init", telling.summary(founded, engine, weights))
    else:
        telling.tell(founded, engine, weights, after_grid=isinstance(chosen_by, Path))

"""What the coordinator's operator chooses when a federation is founded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cachefl_secure.cache.prompts import PAPER, Prompts, file_prompts, template_prompts
from cachefl_secure.errors import OPTIONS, ConfigError
from cachefl_secure.federation.calibration import USUAL_MOMENTUM, PrivacyChoices, ServerName, server_section
from cachefl_secure.federation.clip_source import ClipSource
from cachefl_secure.federation.grid_choices import GridChoices
from cachefl_secure.federation.one_release import StatisticsChoices
from cachefl_secure.plan import SecureSumPlan, Trained
from cachefl_secure.server_plan import FEDAVG, ServerPlan

FOLDER, FEATURES, TEXT = "folder:", "features:", "text"
"""What ``--generator`` takes beside a diffusers pipeline."""


def is_drawn(generator: str) -> bool:
    """Whether pictures are drawn, or taken from elsewhere, or there are none."""
    return generator != TEXT and not generator.startswith((FOLDER, FEATURES))


ReleaseChoices = StatisticsChoices | GridChoices
"""Of one release."""

AlphaBetaSource = Literal["given", "leave-one-out"] | Path
"""The two fields above it, or chosen on the synthetic cache, or by another federation, with mechanism ``grid``, of which
the path is the directory of a party: there private records chose, and were charged for it. Never by test records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureChoices:
    """How pictures are made; None is the generator's own default."""

    prompts: str = "paper"
    """``paper``, ``dataset`` (the plan's templates) or ``file:PATH``."""
    candidates_per_class: int | None = None
    """None: four for each key."""
    steps: int | None = None
    guidance: float | None = None
    revision: str | None = None
    licence: str = ""
    """As the operator states it, where no card does."""
    offload: bool = False
    offline: bool = False
    """Download nothing: neither the generator nor the encoder that reads its pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundingChoices:
    """What the coordinator's operator chose."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    clip: ClipSource
    generator: str
    """What ``--generator`` takes: a diffusers pipeline, ``folder:``, ``features:`` or ``text``."""
    pictures: PictureChoices = field(default_factory=PictureChoices)
    images_per_class: int = 4
    alpha: float = 10.0
    alpha_norm: Literal["sum", "mean"] = "sum"
    beta: float = 3.0
    alpha_beta: AlphaBetaSource = "given"
    trained: Trained = "keys"
    rng_seed: int = 0
    server: ServerName = "mean"
    server_rate: float | None = None
    """None: as ``calibration.server_section`` chooses it."""
    server_momentum: float = USUAL_MOMENTUM
    privacy: PrivacyChoices | ReleaseChoices
    secure_sum: SecureSumPlan
    device: str = "cpu"
    engine: str = ""
    """URL of what will carry messages; empty: all parties are on one machine."""


def prompts_of(choices: FoundingChoices) -> Prompts:
    """What a text-to-image generator is asked for, a class at a time.

    Raises:
        ConfigError: no such file, or sentences that do not fit the classes.
    """
    text = choices.pictures.prompts
    if text == "paper":
        return template_prompts(choices.classes, [PAPER])
    if text == "dataset":
        return template_prompts(choices.classes, choices.templates)
    kind, colon, place = text.partition(":")
    if kind == "file" and colon and place:
        return file_prompts(Path(place).expanduser(), choices.classes)
    raise ConfigError(OPTIONS, "prompts", "write paper, dataset or file:PATH")


def server_of(choices: FoundingChoices, feature_dim: int) -> ServerPlan:
    """The server's section.

    Raises:
        ConfigError: a number out of range, or any server where nothing is trained.
    """
    if isinstance(choices.privacy, ReleaseChoices):
        if (choices.server, choices.server_rate, choices.server_momentum) != ("mean", None, USUAL_MOMENTUM):
            raise ConfigError(OPTIONS, "server", "is about training; with one release there is none")
        return FEDAVG
    return server_section(
        choices.server,
        choices.server_rate,
        choices.server_momentum,
        rounds=choices.privacy.rounds,
        feature_dim=feature_dim,
    )

"""init and admit: what the coordinator does before the first round.

    generate K images a class -> encode -> initial cache -> calibrate the noise -> plan, signed as an invite

Nothing private exists yet, so everything here is public and may be made again from its seed.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cachefl_secure.crypto.sign import fingerprint
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.calibration import PrivacyChoices, checked
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.clip_source import ClipSource, load_source
from cachefl_secure.federation.enrolment import (
    make_roster,
    open_roster,
    read_invite,
    read_join_request,
    sign_roster,
    write_invite,
)
from cachefl_secure.federation.ports import Progress, silent
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import PublicKeyHex
from cachefl_secure.plan import CachePlan, EncoderPlan, FederationPlan, PrivacyPlan, SecureSumPlan
from cachefl_secure.protocol.messages import Member
from cachefl_secure.protocol.parameters import RoundParameters

if TYPE_CHECKING:
    from PIL.Image import Image

    from cachefl_secure.cache.encoder import Encoder
    from cachefl_secure.cache.features import FeatureSet
    from cachefl_secure.cache.model import CacheModel
    from cachefl_secure.cache.synthesis import Score

INVITE_FILE, ROSTER_FILE = "invite.toml", "roster.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundingChoices:
    """What the coordinator's operator chose."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    clip: ClipSource
    generator: str
    generator_prompt: str = "a photo of a {}."
    images_per_class: int = 4
    candidates_per_class: int = 8
    alpha: float = 10.0
    beta: float = 3.0
    rng_seed: int = 0
    privacy: PrivacyChoices
    secure_sum: SecureSumPlan
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Founded:
    """What init tells its operator."""

    plan: FederationPlan
    fingerprint: str
    invite: Path
    synthetic_images: int


def found_federation(root: Path, choices: FoundingChoices, progress: Progress = silent) -> Founded:
    """A new coordinator's directory: images, initial cache, keys, plan and invite.

    If it was interrupted, the same call goes on: images that were made are kept.

    Raises:
        ConfigError: a choice out of range, no generator or encoder, or the directory is occupied.
    """
    from cachefl_secure.cache.model import cache_to_bytes

    StateDir.refuse_occupied(root)
    _check_secure_sum(choices.secure_sum)  # fail on numbers before minutes are spent on images
    choices.privacy.draft()
    encoder = load_source(choices.clip, device=choices.device)
    privacy = choices.privacy.plan(
        feature_dim=encoder.feature_dim, cohort_size=choices.secure_sum.minimum_cohort
    )
    state = StateDir.create(root)
    model = _initial_model(state, choices, encoder, progress)
    plan = checked(lambda: _plan(state, choices, encoder, model, privacy))
    RoundParameters.derive(plan, plan.secure_sum.minimum_cohort)  # the encoding must fit
    state.write("models/0000.safetensors", cache_to_bytes(model))
    key = state.signing_key()
    state.write(INVITE_FILE, write_invite(plan, key))
    state.finish()
    images = len(choices.classes) * choices.images_per_class
    return Founded(plan, fingerprint(key.public_key), root / INVITE_FILE, images)


def _check_secure_sum(section: SecureSumPlan) -> None:
    checked(lambda: section)
    most = section.minimum_cohort - 2
    if section.colluders > most:
        reason = (
            f"a sum of {section.minimum_cohort} silos hides two honest updates from at most {most} colluders"
        )
        raise ConfigError("init", "colluders", f"{reason}; raise --minimum-cohort")


def _initial_model(
    state: StateDir, choices: FoundingChoices, encoder: Encoder, progress: Progress
) -> CacheModel:
    from cachefl_secure.cache.encoder import text_classifier
    from cachefl_secure.cache.initial import initial_cache

    classifier = text_classifier(encoder, choices.classes, choices.templates)
    features = _synthetic_features(state, choices, encoder, classifier, progress)
    return initial_cache(
        features,
        classifier,
        images_per_class=choices.images_per_class,
        alpha=choices.alpha,
        beta=choices.beta,
        logit_scale=encoder.logit_scale,
    )


def _synthetic_features(
    state: StateDir, choices: FoundingChoices, encoder: Encoder, classifier: Tensor, progress: Progress
) -> FeatureSet:
    from cachefl_secure.cache.features import ImageList, extract_features
    from cachefl_secure.cache.synthesis import generate, load_generator

    generator = load_generator(choices.generator, device=choices.device)
    folder = state.path("synthetic")
    kept = generate(
        generator,
        choices.classes,
        choices.generator_prompt,
        choices.images_per_class,
        choices.rng_seed,
        folder,
        candidates_per_class=choices.candidates_per_class,
        score=_margin(encoder, classifier),
        progress=lambda done, total: progress(done, total, "generate"),
    )
    files, labels = tuple(image.file for image in kept), tuple(image.label for image in kept)
    return extract_features(ImageList(folder, files, labels, choices.classes), encoder)


def _margin(encoder: Encoder, classifier: Tensor) -> Score:
    """Zero-shot margin of the claimed class over the best other: how surely a picture shows what it should."""

    def score(pictures: Sequence[Image], labels: Sequence[int]) -> list[float]:
        similarities = encoder.encode_images(list(pictures)) @ classifier.T
        claimed = torch.as_tensor(list(labels)).unsqueeze(1)
        own = similarities.gather(1, claimed)
        others = similarities.scatter(1, claimed, -math.inf).amax(dim=1, keepdim=True)
        return [float(value) for value in (own - others).squeeze(1)]

    return score


def _plan(
    state: StateDir, choices: FoundingChoices, encoder: Encoder, model: CacheModel, privacy: PrivacyPlan
) -> FederationPlan:
    from cachefl_secure.cache.model import cache_digest

    return FederationPlan(
        federation_id=secrets.token_hex(16),
        name=choices.name,
        coordinator_public_key=state.signing_key().public_key,
        classes=choices.classes,
        encoder=EncoderPlan(
            model=choices.clip.model,
            pretrained=choices.clip.pretrained,
            weights_digest=encoder.weights_digest,
            preprocessing_digest=encoder.preprocessing_digest,
            feature_dim=encoder.feature_dim,
            templates=choices.templates,
        ),
        cache=CachePlan(
            images_per_class=choices.images_per_class,
            alpha=choices.alpha,
            beta=choices.beta,
            logit_scale=model.logit_scale,
            initial_digest=cache_digest(model),
        ),
        privacy=privacy,
        secure_sum=choices.secure_sum,
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A silo that asks to be admitted, with the fingerprint that its operator reads out."""

    member: Member
    fingerprint: str
    file: Path


@dataclass(frozen=True, slots=True)
class CoordinatorFiles:
    """A coordinator's directory, opened and checked."""

    state: StateDir
    plan: FederationPlan

    @classmethod
    def open(cls, root: Path) -> CoordinatorFiles:
        """
        Raises:
            ConfigError: not a coordinator's directory, or a file in it does not parse.
        """
        if not (root / INVITE_FILE).is_file() or (root / "silo.toml").exists():
            raise ConfigError(str(root), "", "no coordinator's directory; init makes one")
        if not StateDir(root).is_finished:
            raise ConfigError(str(root), "", "init was interrupted; run it again with the same directory")
        return cls(StateDir(root), read_invite(root / INVITE_FILE))

    def candidates(self, requests: Sequence[Path]) -> list[Candidate]:
        """The silos behind these join requests, sorted by name.

        Raises:
            ConfigError: a request is unreadable, changed, or for another plan.
        """
        read = [(read_join_request(path, self.plan), path) for path in requests]
        made = [
            Candidate(member, fingerprint(PublicKeyHex(member.public_key)), path) for member, path in read
        ]
        return sorted(made, key=lambda candidate: candidate.member.silo)

    def admit(self, candidates: Sequence[Candidate]) -> int:
        """Signs the roster of exactly these silos; returns how many.

        Raises:
            ConfigError: too few, one twice, or a roster that silos have pinned exists already.
        """
        if self.state.has(ROSTER_FILE):
            reason = "silos are admitted already; changing the roster is not possible yet: run init anew"
            raise ConfigError(str(self.state.path(ROSTER_FILE)), "", reason)
        roster = make_roster(self.plan, [candidate.member for candidate in candidates])
        RoundParameters.derive(self.plan, len(roster.members))
        self.state.write(ROSTER_FILE, sign_roster(roster, self.state.signing_key()))
        return len(roster.members)

    def initial_model(self) -> CacheModel:
        """The cache of round 0, also before anybody is admitted."""
        from cachefl_secure.cache.model import load_cache

        return load_cache(self.state.path("models/0000.safetensors"))

    def chain(self) -> Chain:
        """The rounds so far, verified.

        Raises:
            ConfigError: no silo has been admitted yet.
        """
        if not self.state.has(ROSTER_FILE):
            raise ConfigError(str(self.state.root), "", "no silos yet: run `cachefl-secure admit` first")
        return Chain(self.state, self.plan, open_roster(self.state.read(ROSTER_FILE), self.plan))

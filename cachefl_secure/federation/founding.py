"""init: what the coordinator does before anybody is asked to join.

    generate K images a class -> encode -> initial cache -> calibrate the noise -> plan, signed as an invite

Nothing private exists yet, so everything here is public and may be made again from its seed.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cachefl_secure.crypto.sign import fingerprint
from cachefl_secure.federation.calibration import Sizes
from cachefl_secure.federation.clip_source import load_source
from cachefl_secure.federation.enrolment import write_invite
from cachefl_secure.federation.founding_checks import check_choices
from cachefl_secure.federation.founding_choices import FoundingChoices, server_of
from cachefl_secure.federation.grid_choices import GridChoices
from cachefl_secure.federation.one_release import StatisticsChoices
from cachefl_secure.federation.option_errors import checked
from cachefl_secure.federation.ports import Progress, silent
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.plan import CachePlan, EncoderPlan, FederationPlan
from cachefl_secure.privacy_plan import PrivacyPlan
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.server_plan import ServerPlan

if TYPE_CHECKING:
    from cachefl_secure.cache.encoder import Encoder
    from cachefl_secure.cache.model import CacheModel
    from cachefl_secure.federation.synthetic_images import FirstKeys

INVITE_FILE = "invite.toml"


@dataclass(frozen=True, slots=True)
class Founded:
    """What init tells its operator."""

    plan: FederationPlan
    fingerprint: str
    invite: Path
    first_keys: FirstKeys


def found_federation(root: Path, choices: FoundingChoices, progress: Progress = silent) -> Founded:
    """A new coordinator's directory: images, initial cache, keys, plan and invite.

    If it was interrupted, the same call goes on: images that were made are kept.

    Raises:
        ConfigError: a choice out of range, no generator or encoder, or the directory is occupied.
    """
    from cachefl_secure.cache.offline import without_hub

    with without_hub(choices.pictures.offline):  # also what libraries of the generator may ask
        return _found(root, choices, progress)


def _found(root: Path, choices: FoundingChoices, progress: Progress) -> Founded:
    check_choices(root, choices)  # before minutes are spent on images
    from cachefl_secure.cache.model import cache_digest, cache_to_bytes

    encoder = load_source(choices.clip, device=choices.device, offline=choices.pictures.offline)
    choices = _with_chosen_pair(choices, encoder)  # also before minutes are spent
    server = server_of(choices, encoder.feature_dim)
    privacy = _privacy(choices, encoder.feature_dim, server)
    state = StateDir.create(root)
    keys, model = _initial_model(state, choices, encoder, progress)
    section = checked(lambda: _cache_plan(choices, model))
    model = replace(model, alpha=section.model_alpha, beta=section.beta)
    section = msgspec.structs.replace(section, initial_digest=cache_digest(model))
    plan = checked(lambda: _plan(state, choices, encoder, section, privacy, server))
    fewest = plan.secure_sum.minimum_cohort
    RoundParameters.derive(plan, fewest, fewest)  # the encoding must fit
    state.write("models/0000.safetensors", cache_to_bytes(model))
    key = state.signing_key()
    state.write(INVITE_FILE, write_invite(plan, key, engine=choices.engine))
    state.finish()
    return Founded(plan, fingerprint(key.public_key), root / INVITE_FILE, keys)


def _privacy(choices: FoundingChoices, feature_dim: int, server: ServerPlan) -> PrivacyPlan:
    honest = choices.secure_sum.honest_survivors
    if isinstance(choices.privacy, GridChoices):
        return choices.privacy.plan(honest_survivors=honest)
    if isinstance(choices.privacy, StatisticsChoices):
        return choices.privacy.plan(
            number_of_classes=len(choices.classes), feature_dim=feature_dim, honest_survivors=honest
        )
    keys_a_row = choices.images_per_class if choices.trained == "keys" else 1
    sizes = Sizes(
        trained_rows=len(choices.classes) * keys_a_row,
        feature_dim=feature_dim,
        cohort_size=choices.secure_sum.minimum_cohort,
        honest_survivors=honest,
        server=server,
        keys_a_row=choices.images_per_class // keys_a_row,
    )
    return choices.privacy.plan(sizes)


def _initial_model(
    state: StateDir, choices: FoundingChoices, encoder: Encoder, progress: Progress
) -> tuple[FirstKeys, CacheModel]:
    from cachefl_secure.cache.encoder import text_classifier
    from cachefl_secure.cache.initial import initial_cache
    from cachefl_secure.federation.synthetic_images import first_keys

    classifier = text_classifier(encoder, choices.classes, choices.templates)
    keys = first_keys(state, choices, encoder, classifier, progress)
    return keys, initial_cache(
        keys.features,
        classifier,
        images_per_class=choices.images_per_class,
        alpha=choices.alpha,
        beta=choices.beta,
        logit_scale=encoder.logit_scale,
        origin=keys.origin,
    )


def _with_chosen_pair(choices: FoundingChoices, encoder: Encoder) -> FoundingChoices:
    """The choices with alpha and beta of the federation that they name, if they name one."""
    if not isinstance(choices.alpha_beta, Path):
        return choices
    from cachefl_secure.federation.chosen_pair import chosen_pair_of

    pair = chosen_pair_of(choices.alpha_beta)
    pair.check_same_cache(
        weights_digest=encoder.weights_digest,
        preprocessing_digest=encoder.preprocessing_digest,
        templates=choices.templates,
        classes=choices.classes,
    )
    alpha = pair.alpha_for(choices.images_per_class, choices.alpha_norm)
    return replace(choices, alpha=alpha, beta=pair.beta)


def _cache_plan(choices: FoundingChoices, model: CacheModel) -> CachePlan:
    """With alpha and beta as they were asked for; the digest is still that of nothing."""
    section = CachePlan(
        images_per_class=choices.images_per_class,
        alpha=choices.alpha,
        alpha_norm=choices.alpha_norm,
        beta=choices.beta,
        logit_scale=model.logit_scale,
        trained=choices.trained,
        initial_digest="0" * 64,
    )
    if choices.alpha_beta != "leave-one-out":
        return section
    from cachefl_secure.cache.leave_one_out import choose_alpha_beta

    divisor = choices.images_per_class if choices.alpha_norm == "mean" else 1
    chosen = choose_alpha_beta(model, divisor=divisor)
    return msgspec.structs.replace(section, alpha=chosen.alpha, beta=chosen.beta)


def _plan(
    state: StateDir,
    choices: FoundingChoices,
    encoder: Encoder,
    section: CachePlan,
    privacy: PrivacyPlan,
    server: ServerPlan,
) -> FederationPlan:
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
        cache=section,
        privacy=privacy,
        secure_sum=choices.secure_sum,
        server=server,
    )

"""What can be wrong with the choices of ``init`` and be known in a moment: told before a model is loaded. No torch."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from cachefl_secure.cache.encoder_files import check_folder
from cachefl_secure.cache.images import image_folder, plain, quoted
from cachefl_secure.cache.pipeline_files import BARE, INDEX
from cachefl_secure.cache.sources import is_feature_file
from cachefl_secure.embedded import CLASSES, GENERATOR_DIR
from cachefl_secure.errors import OPTIONS, ConfigError
from cachefl_secure.federation.clip_source import EMBEDDED, ClipSource
from cachefl_secure.federation.founding_choices import (
    FEATURES,
    FOLDER,
    TEXT,
    FoundingChoices,
    ReleaseChoices,
    prompts_of,
    server_of,
)
from cachefl_secure.federation.option_errors import checked
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.plan import CachePlan, EncoderPlan, FederationPlan, SecureSumPlan
from cachefl_secure.wording import counted

_NOTHING = "0" * 64
_MODEL_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_choices(root: Path, choices: FoundingChoices) -> None:
    """Everything but what the models themselves decide.

    Raises:
        ConfigError: a choice is out of range, or does not go with another; a file or folder is not as it should
            be; the directory is occupied.
    """
    StateDir.refuse_occupied(root)
    check_secure_sum(choices.secure_sum)
    _check_classes(choices.classes)
    checked(lambda: _provisional(choices), chosen_as={"model": "clip", "templates": "template"})
    _check_keys(choices)
    _check_clip(choices.clip)
    _check_generator(choices)


def check_secure_sum(section: SecureSumPlan) -> None:
    """
    Raises:
        ConfigError: a number out of range, or more colluders or survivors than the fewest silos can bear.
    """
    checked(lambda: section)
    fewest, most = section.minimum_cohort, section.minimum_cohort - 2
    if section.colluders > most:
        reason = (
            f"a sum of {fewest} silos hides two honest updates from at most "
            f"{counted(most, 'colluder')}, not {section.colluders}; raise --minimum-cohort"
        )
        raise ConfigError(OPTIONS, "colluders", reason)
    if section.minimum_survivors > fewest:
        reason = (
            f"of the {fewest} silos that a round may begin with, {section.minimum_survivors} cannot survive; "
            "raise --minimum-cohort"
        )
        raise ConfigError(OPTIONS, "minimum_survivors", reason)


def _provisional(choices: FoundingChoices) -> FederationPlan:
    """The plan as far as it follows from the choices: digests, dimension and calibration are placeholders."""
    if isinstance(choices.privacy, ReleaseChoices) and choices.trained != "keys":
        raise ConfigError(OPTIONS, "trained", "is about training; with one release there is none")
    privacy = choices.privacy.draft()
    return FederationPlan(
        federation_id="0" * 32,
        name=choices.name,
        coordinator_public_key=_NOTHING,
        classes=choices.classes,
        encoder=EncoderPlan(
            model=choices.clip.model,
            pretrained=choices.clip.pretrained,
            weights_digest=_NOTHING,
            preprocessing_digest=_NOTHING,
            feature_dim=1,
            templates=choices.templates,
        ),
        cache=CachePlan(
            images_per_class=choices.images_per_class,
            alpha=choices.alpha,
            alpha_norm=choices.alpha_norm,
            beta=choices.beta,
            logit_scale=1.0,
            trained=choices.trained,
            initial_digest=_NOTHING,
        ),
        privacy=privacy,
        secure_sum=choices.secure_sum,
        server=server_of(choices, 1),
    )


def _check_classes(classes: tuple[str, ...]) -> None:
    twice = [name for name, times in Counter(classes).items() if times > 1]
    if twice:
        raise ConfigError(OPTIONS, "classes", f"named more than once: {quoted(twice)}")


def _check_keys(choices: FoundingChoices) -> None:
    candidates, keys = choices.pictures.candidates_per_class, choices.images_per_class
    if candidates is not None and candidates < keys:
        reason = f"{candidates} a class, of which the best {keys} are to be kept; give {keys} or more"
        raise ConfigError(OPTIONS, "candidates", reason)
    if isinstance(choices.alpha_beta, Path) and not choices.alpha_beta.is_dir():
        reason = f"{choices.alpha_beta}: no such directory; name that of a party of a grid federation"
        raise ConfigError(OPTIONS, "alpha_beta", reason)
    if choices.alpha_beta == "leave-one-out" and keys < 2:
        reason = "leave-one-out needs at least two images a class; raise --images-per-class"
        raise ConfigError(OPTIONS, "alpha_beta", reason)


def _check_clip(source: ClipSource) -> None:
    if source.local_dir is not None:
        if not source.local_dir.is_dir():
            raise ConfigError(OPTIONS, "clip", f"{source.text}: no such folder")
        check_folder(source.local_dir)
    elif source.model != EMBEDDED and ":" not in source.model and not source.pretrained:
        reason = (
            f"needed with --clip {source.model}: a tag of open_clip, such as openai, or a .safetensors file"
        )
        raise ConfigError(OPTIONS, "pretrained", reason)


def _check_generator(choices: FoundingChoices) -> None:
    text = choices.generator
    for prefix, check in ((FOLDER, _check_pictures), (FEATURES, _check_features)):
        if text.startswith(prefix):
            try:
                check(Path(text.removeprefix(prefix)).expanduser(), choices.classes)
            except ConfigError as error:
                reason = f"{error.field}: {error.reason}" if error.field else error.reason
                raise _generator_error(text, reason) from None
            return
    if text == TEXT:
        return
    prompts_of(choices)
    if text == str(GENERATOR_DIR):
        unknown = [name for name in choices.classes if plain(name) not in CLASSES]
        if unknown:
            reason = (
                f"the embedded one draws digits only, no {quoted(unknown)}; name another, or text for none"
            )
            raise ConfigError(OPTIONS, "generator", reason)
        return
    _check_pipeline(text)


def _check_pictures(folder: Path, classes: tuple[str, ...]) -> None:
    if not len(image_folder(folder, classes)):
        raise ConfigError(str(folder), "", "holds no picture of any class")


def _check_features(path: Path, classes: tuple[str, ...]) -> None:
    if not path.exists():
        raise ConfigError(str(path), "", "no such file")
    if not is_feature_file(path):
        raise ConfigError(str(path), "", "is neither .npz, .safetensors nor .npy with labels beside it")


def _check_pipeline(text: str) -> None:
    folder = Path(text)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in (INDEX, BARE)):
            reason = f"no {INDEX} in it, as a diffusers pipeline has; a folder of pictures is given as {FOLDER}{text}"
            raise _generator_error(text, reason)
    elif not _MODEL_ID.fullmatch(text):
        raise _generator_error(text, "no such folder, and no model id of the hub")


def _generator_error(text: str, reason: str) -> ConfigError:
    return ConfigError(OPTIONS, "generator", f"{text[:200]}: {reason}")

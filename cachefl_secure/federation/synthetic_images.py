"""The pictures that become cache keys: generated here, or made elsewhere. Never private ones: keys are public."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cachefl_secure.cache.features import FeatureSet, extract_features
from cachefl_secure.cache.images import ImageList, image_folder
from cachefl_secure.federation.ports import Progress
from cachefl_secure.federation.state_dir import StateDir

if TYPE_CHECKING:
    from PIL.Image import Image

    from cachefl_secure.cache.encoder import Encoder
    from cachefl_secure.cache.synthesis import Score
    from cachefl_secure.federation.founding import FoundingChoices

FOLDER = "folder:"
"""``folder:PATH``: an ImageFolder of public pictures made elsewhere, a published synthetic set for instance."""


def synthetic_features(
    state: StateDir, choices: FoundingChoices, encoder: Encoder, classifier: Tensor, progress: Progress
) -> FeatureSet:
    """K pictures of every class as features, the surest of the candidates.

    Raises:
        ConfigError: no such generator or folder, or too few pictures of a class.
    """
    if choices.generator.startswith(FOLDER):
        images = image_folder(Path(choices.generator.removeprefix(FOLDER)), choices.classes)
        features = extract_features(
            images, encoder, progress=lambda done, all_: progress(done, all_, "encode")
        )
        return _surest(features, classifier)
    return _generated(state, choices, encoder, classifier, progress)


def _generated(
    state: StateDir, choices: FoundingChoices, encoder: Encoder, classifier: Tensor, progress: Progress
) -> FeatureSet:
    from cachefl_secure.cache.generator import load_generator
    from cachefl_secure.cache.synthesis import generate

    generator = load_generator(choices.generator, device=choices.device)
    folder = state.path("synthetic")
    kept = generate(
        generator,
        choices.classes,
        choices.generator_prompt,
        choices.images_per_class,
        choices.rng_seed,
        folder,
        candidates_per_class=max(choices.candidates_per_class, choices.images_per_class),
        score=_score(encoder, classifier),
        progress=lambda done, total: progress(done, total, "generate"),
    )
    files, labels = tuple(image.file for image in kept), tuple(image.label for image in kept)
    return extract_features(ImageList(folder, files, labels, choices.classes), encoder)


def _score(encoder: Encoder, classifier: Tensor) -> Score:
    def score(pictures: Sequence[Image], labels: Sequence[int]) -> list[float]:
        features = encoder.encode_images(list(pictures))
        return _margins(features, torch.as_tensor(list(labels)), classifier).tolist()

    return score


def _surest(features: FeatureSet, classifier: Tensor) -> FeatureSet:
    """The same records, surest first, so that the cache takes the best of each class."""
    order = _margins(features.features, features.labels, classifier).argsort(descending=True, stable=True)
    return FeatureSet(features.features[order], features.labels[order])


def _margins(features: Tensor, labels: Tensor, classifier: Tensor) -> Tensor:
    """Zero-shot margin of the claimed class over the best other: how surely a picture shows what it should."""
    similarities, claimed = features @ classifier.T, labels.unsqueeze(1)
    own = similarities.gather(1, claimed)
    others = similarities.scatter(1, claimed, -math.inf).amax(dim=1, keepdim=True)
    return (own - others).squeeze(1)

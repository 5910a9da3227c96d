"""evaluate and predict with the models of a directory, at the coordinator or at a silo.

Figures on private images are private: they are printed where they were computed and never sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cachefl_secure.cache.evaluate import Accuracy, closed_form_alone, evaluate, predict, zero_shot
from cachefl_secure.cache.feature_file import read_feature_file
from cachefl_secure.cache.features import FeatureSet, batch_size_on, extract
from cachefl_secure.cache.images import open_image
from cachefl_secure.cache.sources import image_list, is_feature_file
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.ports import Progress, silent
from cachefl_secure.plan import FederationPlan
from cachefl_secure.privacy.accounting import Cost

if TYPE_CHECKING:
    from cachefl_secure.cache.encoder import Encoder


@dataclass(frozen=True, slots=True)
class RoundAccuracy:
    """The model after a round; ``cost`` is the most that any silo can have spent by then."""

    round: int
    cost: Cost
    accuracy: Accuracy


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All on the same images. ``rounds[0]`` is the synthetic cache before any private data."""

    zero_shot: Accuracy
    rounds: tuple[RoundAccuracy, ...]
    closed_form: Accuracy | None = None
    """Of the head of the last model by itself, where there were statistics."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Scores for one image, from 0 to 1, the best class first. They rank; nobody calibrated them as probabilities."""

    image: Path
    classes: tuple[tuple[str, float], ...]


def read_records(
    source: Path,
    plan: FederationPlan,
    encoder: Callable[[], Encoder],
    *,
    skip_unreadable: bool = False,
    progress: Progress = silent,
) -> tuple[FeatureSet, tuple[str, ...]]:
    """Labelled records of a folder, a table or a feature file, and the paths of images that were skipped.

    ``encoder`` is only called for images.

    Raises:
        ConfigError: an unknown class, an unreadable image that is not to be skipped, or features that do not fit.
        MissingExtra: a Parquet table, and pyarrow is not installed.
    """
    if is_feature_file(source):
        classes, dimension = len(plan.classes), plan.encoder.feature_dim
        return read_feature_file(source, number_of_classes=classes, feature_dim=dimension).records, ()
    images = image_list(source, plan.classes, skip_missing=skip_unreadable)
    clip, what = encoder(), f"{source.name}: encode"
    found = extract(
        images,
        clip,
        skip_unreadable=skip_unreadable,
        batch_size=batch_size_on(clip.device),
        progress=lambda done, all_: progress(done, all_, what),
    )
    return found.view(0), found.skipped


def evaluate_rounds(chain: Chain, records: FeatureSet, *, every_round: bool) -> Evaluation:
    """Accuracy of zero-shot CLIP, of the synthetic cache, and after the last or every round."""
    last = chain.position.round
    points = []
    for number, model in chain.models():
        if every_round or number in (0, last):
            points.append(RoundAccuracy(number, chain.cost_by(number), evaluate(model, records)))
    alone = closed_form_alone(model, records) if model.sums is not None else None
    return Evaluation(zero_shot(chain.initial_model(), records), tuple(points), alone)


def predict_images(chain: Chain, encoder: Encoder, paths: Sequence[Path], *, most: int) -> list[Prediction]:
    """The ``most`` probable classes of each image under the latest model.

    Raises:
        ConfigError: an image cannot be read.
    """
    features = encoder.encode_images([open_image(path) for path in paths])
    ranked = predict(chain.model(), features).sort(dim=1, descending=True)
    names = chain.plan.classes
    return [
        Prediction(path, tuple((names[j], float(p)) for p, j in zip(row_p[:most], row_j[:most], strict=True)))
        for path, row_p, row_j in zip(paths, ranked.values.tolist(), ranked.indices.tolist(), strict=True)
    ]

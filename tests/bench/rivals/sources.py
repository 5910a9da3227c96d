"""The data sets of the table: embedded handwriting, and what lies in the folder of real data.

Features of images are encoded once and kept in a cache folder, by what they were made of.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cachefl_secure.cache.encoder import Encoder, load_encoder, text_classifier
from cachefl_secure.cache.feature_set import FeatureSet
from cachefl_secure.cache.features import extract_features, features_digest
from cachefl_secure.cache.generator import load_generator
from cachefl_secure.cache.images import ImageList, image_folder
from cachefl_secure.cache.manifest import BLANK, KEPT
from cachefl_secure.cache.prompts import PAPER, template_prompts
from cachefl_secure.cache.saved_features import load_features, save_features
from cachefl_secure.cache.selection import select
from cachefl_secure.cache.synthesis import draw_images
from cachefl_secure.embedded import CLASSES, CLIP_DIR, GENERATOR_DIR, TEMPLATES
from cachefl_secure.embedded.digits import HELD_OUT, silo_folders, write_image_folders
from cachefl_secure.federation.synthetic_images import CANDIDATES_A_KEY
from tests.bench.rivals import clip_features, image_archives
from tests.bench.rivals.task import Task, joined, rows

DATA = Path(os.environ.get("CACHEFL_SECURE_DATA") or Path(__file__).parents[4] / "shared" / "data")
KEYS = 4
"""Cache keys a class where pictures are drawn: the product's default."""
PHOTO_TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "{}")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Place:
    """Where data lies and what was encoded is kept."""

    data: Path
    cache: Path
    progress: Progress

    def encoded(self, images: ImageList, encoder: Encoder, name: str) -> FeatureSet:
        """From the cache if it was made of the same files by the same encoder."""
        file, digest = self.cache / f"{name}.safetensors", features_digest(images, encoder)
        if file.is_file():
            features, made_of = load_features(file)
            if made_of == digest:
                return features
        features = extract_features(
            images, encoder, progress=lambda done, all_: self.progress(done, all_, f"encode {name}")
        )
        save_features(file, features, digest)
        return features

    def drawn(
        self,
        generator: Path,
        classes: tuple[str, ...],
        seed: int,
        encoder: Encoder,
        classifier: Tensor,
        name: str,
    ) -> FeatureSet:
        """Pictures that a generator draws, chosen as ``init`` does: the kept ones of each class before the others."""
        folder = self.cache / name
        lines = draw_images(
            load_generator(str(generator)),
            classes,
            template_prompts(classes, [PAPER]),
            CANDIDATES_A_KEY * KEYS,
            seed,
            folder,
            progress=lambda done, all_: self.progress(done, all_, f"draw {name}"),
        )
        files, labels = tuple(line.file for line in lines), tuple(line.label for line in lines)
        features = self.encoded(ImageList(folder, files, labels, classes), encoder, name)
        blank = [line.decision == BLANK for line in lines]
        verdicts = select(features, classifier, files, blank, KEYS)
        order = sorted(range(len(lines)), key=lambda row: verdicts[row].decision != KEPT)
        return rows(features, torch.tensor(order))


def digits(place: Place, seed: int) -> Task:
    """The product's own start: pictures of the embedded generator. The held-out fifth is drawn by the seed."""
    encoder = load_encoder("embedded", local_dir=CLIP_DIR)
    classifier = text_classifier(encoder, CLASSES, TEMPLATES)
    folder = place.cache / f"digits-{seed}"
    write_image_folders(folder, seed)

    def encoded(name: str) -> FeatureSet:
        return place.encoded(image_folder(folder / name, CLASSES), encoder, f"digits-{seed}-{name}")

    return Task(
        "digits",
        CLASSES,
        classifier,
        encoder.logit_scale,
        place.drawn(GENERATOR_DIR, CLASSES, seed, encoder, classifier, f"digits-{seed}-synthetic"),
        KEYS,
        joined([encoded(str(name)) for name in silo_folders(folder)]),
        encoded(HELD_OUT),
        "embedded CLIP; text of class names; generated pictures",
        encoder,
        seeds_of_their_own=True,
    )


def photos(place: Place) -> Task:
    """Caltech101's small copy through a real image-text model; no generator of photos is here, so text is the start."""
    encoder, classes, training, test = _archive(place, "caltech101_small.tar", "caltech101")
    classifier = text_classifier(encoder, classes, PHOTO_TEMPLATES)
    return Task(
        "caltech101 photos",
        classes,
        classifier,
        encoder.logit_scale,
        FeatureSet(classifier, torch.arange(len(classes))),
        1,
        training,
        test,
        "lit_mnv2; text of class names, as keys too: no synthetic images",
        encoder,
    )


def medical(place: Place) -> Task:
    """MedNIST, few images a class, with pictures of a diffusion model that was trained on such images."""
    encoder, classes, training, test = _archive(place, "mednist_subset.tar", "mednist")
    classifier = text_classifier(encoder, tuple(map(image_archives.spoken, classes)), ("a {}.", "{}"))
    model = place.data / "ddpm_mednist32"
    drawn = place.drawn(model, classes, 0, encoder, classifier, "mednist-synthetic")
    return Task(
        "mednist",
        classes,
        classifier,
        encoder.logit_scale,
        drawn,
        KEYS,
        training,
        test,
        "lit_mnv2; text of class names; pictures of a diffusion model that saw 600 images a class, perhaps of these",
        encoder,
    )


def _archive(
    place: Place, archive: str, name: str
) -> tuple[Encoder, tuple[str, ...], FeatureSet, FeatureSet]:
    folder, classes = image_archives.unpack(place.data, archive, place.cache / f"{name}-images")
    encoder = load_encoder("local-dir", local_dir=place.data / "lit_mnv2_openclip")
    training, test = (
        place.encoded(image_folder(folder / part, classes), encoder, f"{name}-{part}")
        for part in ("train", "test")
    )
    return encoder, classes, training, test


def clip(name: str) -> Callable[[Place, int], Task]:
    return lambda place, seed: clip_features.task(place.data / clip_features.FOLDER, name)


@dataclass(frozen=True)
class Source:
    """A data set by the name that ``--data`` takes, and the files without which it is skipped."""

    name: str
    load: Callable[[Place, int], Task]
    needs: tuple[str, ...] = ()

    def missing(self, data: Path) -> list[str]:
        return [file for file in self.needs if not (data / file).exists()]


SOURCES = (
    Source("digits", digits),
    *(
        Source(
            f"clip-{name}",
            clip(name),
            (
                f"{clip_features.FOLDER}/{name}.npz",
                *([f"{clip_features.FOLDER}/{clip_features.TEXT}"] if name == "caltech101" else []),
            ),
        )
        for name in ("caltech101", "oxford_flowers", "oxford_pets", "dtd")
    ),
    Source(
        "photos",
        lambda place, seed: photos(place),
        ("caltech101_small.tar", "lit_mnv2_openclip", "coop_splits/split_zhou_Caltech101.json"),
    ),
    Source(
        "mednist",
        lambda place, seed: medical(place),
        ("mednist_subset.tar", "lit_mnv2_openclip", "ddpm_mednist32"),
    ),
)

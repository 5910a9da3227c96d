"""Where candidates for the first cache keys come from. Never from private pictures: cache keys are public."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cachefl_secure.cache.encoder import Encoder
from cachefl_secure.cache.feature_file import read_feature_file
from cachefl_secure.cache.features import FeatureSet, extract_features
from cachefl_secure.cache.generator import Generator
from cachefl_secure.cache.images import ImageList, image_folder, open_image
from cachefl_secure.cache.manifest import BLANK, DRAWN, SyntheticImage
from cachefl_secure.cache.pipeline_files import card_of, licence_of
from cachefl_secure.cache.prompts import Prompts
from cachefl_secure.cache.synthesis import draw_images, is_blank
from cachefl_secure.errors import ConfigError

Report = Callable[[int, int, str], None]
"""Done, in all, and of what: for a progress bar."""


@dataclass(frozen=True, slots=True, repr=False)
class Candidates:
    """Features and, for each, the manifest's line. None at all is legal."""

    features: FeatureSet
    lines: list[SyntheticImage]


class KeySource(Protocol):
    """What ``init --generator`` names."""

    @property
    def kind(self) -> str:
        """One of ``origin.KINDS``."""
        ...

    @property
    def name(self) -> str:
        """What the cache will say that it comes from: no path."""
        ...

    @property
    def licence(self) -> str: ...

    def candidates(
        self, classes: Sequence[str], encoder: Encoder, folder: Path, report: Report
    ) -> Candidates:
        """``folder`` is where pictures and manifest of this federation are kept."""
        ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures that a diffusers pipeline draws here."""

    generator: Generator
    prompts: Prompts
    per_class: int
    rng_seed: int
    steps: int | None
    guidance: float | None
    licence: str
    kind: str = field(default="diffusers", init=False)

    @property
    def name(self) -> str:
        return self.generator.name

    def candidates(
        self, classes: Sequence[str], encoder: Encoder, folder: Path, report: Report
    ) -> Candidates:
        lines = draw_images(
            self.generator,
            classes,
            self.prompts,
            self.per_class,
            self.rng_seed,
            folder,
            steps=self.steps,
            guidance=self.guidance,
            progress=lambda done, total: report(done, total, "generate"),
        )
        files, labels = tuple(line.file for line in lines), tuple(line.label for line in lines)
        images = ImageList(folder, files, labels, tuple(classes))
        return Candidates(_encoded(images, encoder, report), lines)


@dataclass(frozen=True, slots=True)
class Collected:
    """Pictures made elsewhere, a published synthetic set for instance: one sub-folder a class."""

    root: Path
    licence: str
    kind: str = field(default="folder", init=False)

    @property
    def name(self) -> str:
        return self.root.resolve().name

    def candidates(
        self, classes: Sequence[str], encoder: Encoder, folder: Path, report: Report
    ) -> Candidates:
        images = image_folder(self.root, classes)
        if not len(images):
            raise ConfigError(str(self.root), "", "holds no picture of any class")
        places = [count() for _ in classes]
        lines = [
            SyntheticImage(
                label=label,
                class_name=classes[label],
                index=next(places[label]),
                file=file,
                sha256=hashlib.sha256((self.root / file).read_bytes()).hexdigest(),
                licence=self.licence,
                decision=BLANK if is_blank(open_image(self.root / file)) else DRAWN,
            )
            for file, label in zip(images.paths, images.labels, strict=True)
        ]
        return Candidates(_encoded(images, encoder, report), lines)


@dataclass(frozen=True, slots=True)
class Features:
    """Public features from a file, made elsewhere with the same encoder."""

    path: Path
    licence: str
    kind: str = field(default="features", init=False)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def candidates(
        self, classes: Sequence[str], encoder: Encoder, folder: Path, report: Report
    ) -> Candidates:
        found = read_feature_file(self.path, number_of_classes=len(classes), feature_dim=encoder.feature_dim)
        labels = found.records.labels.tolist()
        lines = [
            SyntheticImage(
                label=label,
                class_name=classes[label],
                index=row,
                sha256=digest,
                licence=self.licence,
            )
            for row, (label, digest) in enumerate(zip(labels, found.record_digests, strict=True))
        ]
        return Candidates(found.records, lines)


@dataclass(frozen=True, slots=True)
class Texts:
    """No pictures: every key is a text feature, see ``text_keys``."""

    name: str = "text features of the encoder"
    licence: str = "the encoder's"
    kind: str = field(default="text", init=False)

    def candidates(
        self, classes: Sequence[str], encoder: Encoder, folder: Path, report: Report
    ) -> Candidates:
        nothing = torch.empty(0, encoder.feature_dim), torch.empty(0, dtype=torch.int64)
        return Candidates(FeatureSet(*nothing), [])


def licence_beside(path: Path) -> str:
    """Of pictures or features made elsewhere: their card's, or a licence file's beside them; else "unknown"."""
    folder = path if path.is_dir() else path.parent
    return licence_of(folder, card_of(folder))


def _encoded(images: ImageList, encoder: Encoder, report: Report) -> FeatureSet:
    """In batches: no more than one of them is in memory."""
    return extract_features(images, encoder, progress=lambda done, total: report(done, total, "encode"))


def text_keys(
    encoder: Encoder, name: str, label: int, templates: Sequence[str], wanted: int, rng_seed: int
) -> tuple[Tensor, list[SyntheticImage]]:
    """(wanted, C) text features of a class as keys: a template each, in turn; after one turn moved a little.

    They give the silos places to train and add nothing before: text features lie apart from pictures' (Liang et al.
    2022), and on the embedded digits and on MedNIST a cache of them reads as well as zero-shot (71.3 and 22.5 %).
    """
    texts = [
        templates[place % len(templates)].replace("{}", name.replace("_", " ")) for place in range(wanted)
    ]
    rows = encoder.encode_text(texts)
    generator = torch.Generator().manual_seed(_jitter_seed(rng_seed, name))
    jitter = torch.nn.functional.normalize(torch.randn(rows.shape, generator=generator), dim=1)
    again = (torch.arange(wanted) >= len(templates)).float().unsqueeze(1)
    keys = torch.nn.functional.normalize(rows + _JITTER * again * jitter, dim=1)
    lines = [
        SyntheticImage(label=label, class_name=name, index=i, prompt=text) for i, text in enumerate(texts)
    ]
    return keys, lines


_JITTER = 0.1  # cosine 0.995 with the text: keys that are equal would get equal gradients and stay equal


def _jitter_seed(rng_seed: int, name: str) -> int:
    return int(hashlib.sha256(f"text-keys/{rng_seed}/{name}".encode()).hexdigest()[:8], 16) >> 1

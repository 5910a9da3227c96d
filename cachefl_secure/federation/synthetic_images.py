"""The first cache keys: candidates from a generator or from elsewhere, the best of them, and a record of it all."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.manifest import BLANK, KEPT, MANIFEST, NO_PICTURE, SyntheticImage, manifest_bytes
from cachefl_secure.cache.origin import CacheOrigin
from cachefl_secure.cache.selection import select
from cachefl_secure.federation.founding_choices import FEATURES, FOLDER, TEXT, prompts_of
from cachefl_secure.federation.ports import Progress
from cachefl_secure.federation.state_dir import StateDir

if TYPE_CHECKING:
    from cachefl_secure.cache.encoder import Encoder
    from cachefl_secure.cache.key_sources import Candidates, KeySource
    from cachefl_secure.federation.founding_choices import FoundingChoices

CANDIDATES_A_KEY = 4


@dataclass(frozen=True, slots=True)
class FirstKeys:
    """K features of every class, and what the operator should hear of them."""

    features: FeatureSet
    origin: CacheOrigin
    misread: int
    """Kept pictures that the encoder takes for another class."""
    without_picture: dict[str, int]
    """Class name to the number of its keys that are text features, for want of pictures."""


def first_keys(
    state: StateDir, choices: FoundingChoices, encoder: Encoder, classifier: Tensor, progress: Progress
) -> FirstKeys:
    """K keys of every class.

    Raises:
        ConfigError: no such generator, folder or file, or prompts that do not fit the classes.
    """
    folder = state.path("synthetic")
    source = _source(choices)
    found = source.candidates(choices.classes, encoder, folder, progress)
    lines, kept = _decided(found, classifier, choices.images_per_class)
    features, text_lines = _filled_up(kept, choices, encoder)
    lines += text_lines
    manifest = manifest_bytes(lines)
    state.write(f"synthetic/{MANIFEST}", manifest)
    missing = Counter(line.class_name for line in text_lines)
    return FirstKeys(
        features,
        _origin(source, manifest),
        sum(line.decision == KEPT and line.rank != 1 for line in lines),
        dict(missing),
    )


def _source(choices: FoundingChoices) -> KeySource:
    from cachefl_secure.cache.key_sources import Collected, Features, Texts, licence_beside

    text, stated = choices.generator, choices.pictures.licence
    if text == TEXT:
        return Texts()
    for prefix, kind in ((FOLDER, Collected), (FEATURES, Features)):
        if text.startswith(prefix):
            path = Path(text.removeprefix(prefix)).expanduser()
            return kind(path, stated or licence_beside(path))
    return _drawn(choices)


def _drawn(choices: FoundingChoices) -> KeySource:
    from cachefl_secure.cache.generator import load_generator
    from cachefl_secure.cache.key_sources import Drawn

    pictures = choices.pictures
    prompts = prompts_of(choices)  # before a download of gigabytes
    generator = load_generator(
        choices.generator,
        revision=pictures.revision,
        device=choices.device,
        offload=pictures.offload,
        offline=pictures.offline,
    )
    per_class = pictures.candidates_per_class or CANDIDATES_A_KEY * choices.images_per_class
    return Drawn(
        generator,
        prompts,
        max(per_class, choices.images_per_class),
        choices.rng_seed,
        pictures.steps,
        pictures.guidance,
        pictures.licence if pictures.licence and generator.licence == "unknown" else generator.licence,
    )


def _decided(
    found: Candidates, classifier: Tensor, per_class: int
) -> tuple[list[SyntheticImage], FeatureSet]:
    """All lines with scores and decisions, and the features that are kept."""
    files = [line.file or f"feature {line.index}" for line in found.lines]
    blank = [line.decision == BLANK for line in found.lines]
    verdicts = select(found.features, classifier, files, blank, per_class)
    lines = [
        msgspec.structs.replace(
            line,
            score=verdict.margin,
            cosine=verdict.cosine,
            rank=verdict.rank,
            decision=verdict.decision,
        )
        for line, verdict in zip(found.lines, verdicts, strict=True)
    ]
    rows = torch.tensor([row for row, line in enumerate(lines) if line.decision == KEPT], dtype=torch.int64)
    return lines, FeatureSet(found.features.features[rows], found.features.labels[rows])


def _filled_up(
    kept: FeatureSet, choices: FoundingChoices, encoder: Encoder
) -> tuple[FeatureSet, list[SyntheticImage]]:
    """The kept features and, where a class has fewer than K, its text features."""
    from cachefl_secure.cache.key_sources import text_keys

    rows, labels, lines = [kept.features], [kept.labels], list[SyntheticImage]()
    for label, name in enumerate(choices.classes):
        missing = choices.images_per_class - int((kept.labels == label).sum())
        if missing > 0:
            keys, texts = text_keys(encoder, name, label, choices.templates, missing, choices.rng_seed)
            rows.append(keys)
            labels.append(torch.full((missing,), label))
            lines += [msgspec.structs.replace(line, decision=NO_PICTURE) for line in texts]
    return FeatureSet(torch.cat(rows), torch.cat(labels)), lines


def _origin(source: KeySource, manifest: bytes) -> CacheOrigin:
    def shown(text: str) -> str:
        return "".join(letter if letter.isprintable() else "?" for letter in text[:200])

    return CacheOrigin(
        source.kind, shown(source.name), shown(source.licence), hashlib.sha256(manifest).hexdigest()
    )

"""Candidates for the first cache keys from each source, and the keys that come of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from cachefl_secure.cache.encoder import Encoder, load_encoder, text_classifier
from cachefl_secure.cache.key_sources import Collected, Features, KeySource, Texts, text_keys
from cachefl_secure.cache.manifest import BLANK, read_manifest
from cachefl_secure.cache.origin import KINDS
from cachefl_secure.embedded import CLIP_DIR, TEMPLATES
from cachefl_secure.embedded.glyphs import draw_glyphs, to_clip_image
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.clip_source import ClipSource
from cachefl_secure.federation.founding_choices import FoundingChoices, PictureChoices
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.federation.synthetic_images import FirstKeys, first_keys
from cachefl_secure.plan import SecureSumPlan

CLASSES = ("zero", "one", "two")
K = 2


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("embedded", local_dir=CLIP_DIR)


def _keys(root: Path, encoder: Encoder, source: str, *, templates: int = 1, **pictures: object) -> FirstKeys:
    choices = FoundingChoices(
        name="x",
        classes=CLASSES,
        templates=TEMPLATES[:templates],
        clip=ClipSource.parse("embedded"),
        generator=source,
        images_per_class=K,
        pictures=PictureChoices(**pictures),  # type: ignore[arg-type]
        privacy=PrivacyChoices(),
        secure_sum=SecureSumPlan(),
    )
    classifier = text_classifier(encoder, CLASSES, choices.templates)
    return first_keys(StateDir.create(root / "state"), choices, encoder, classifier, silent)


def _folder(root: Path, numbers: tuple[int, ...] = (4, 4, 4)) -> Path:
    for digit, number in enumerate(numbers):
        for index, glyph in enumerate(draw_glyphs(np.full(number, digit), 100 + digit)):
            file = root / CLASSES[digit] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            to_clip_image(glyph).save(file)
    return root


def test_every_source_has_the_one_interface(tmp_path: Path) -> None:
    sources: list[KeySource] = [Texts(), Collected(tmp_path, "mit"), Features(tmp_path / "f.npz", "mit")]
    assert {source.kind for source in sources} | {"diffusers", "unstated"} == set(KINDS)


def test_pictures_made_elsewhere_become_keys_and_the_manifest_says_of_each_what_became_of_it(
    encoder: Encoder, tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "published")
    Image.new("RGB", (32, 32)).save(folder / "one" / "blank.png")
    (folder / "LICENSE").write_text("MIT License\n")
    keys = _keys(tmp_path, encoder, f"folder:{folder}")
    lines = read_manifest(tmp_path / "state" / "synthetic")
    assert len(lines) == 13
    assert [line.file for line in lines if line.decision == BLANK] == ["one/blank.png"]
    kept = [line for line in lines if line.decision == "kept"]
    assert sorted(line.label for line in kept) == [0, 0, 1, 1, 2, 2]
    assert [line.label for line in kept] == keys.features.labels.tolist()
    for row, line in enumerate(kept):
        again = encoder.encode_images([Image.open(folder / line.file)])[0]
        assert float(again @ keys.features.features[row]) > 0.9999
    assert (keys.origin.kind, keys.origin.name, keys.origin.licence) == ("folder", "published", "MIT License")
    assert (keys.misread, keys.without_picture) == (0, {})
    assert str(tmp_path) not in (tmp_path / "state" / "synthetic" / "manifest.jsonl").read_text()


def test_a_class_with_too_few_pictures_gets_text_keys_and_it_is_said(
    encoder: Encoder, tmp_path: Path
) -> None:
    keys = _keys(tmp_path, encoder, f"folder:{_folder(tmp_path / 'p', (4, 1, 0))}", licence="cc-by-4.0")
    assert keys.without_picture == {"one": 1, "two": 2}
    assert keys.origin.licence == "cc-by-4.0"
    assert sorted(keys.features.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    lines = read_manifest(tmp_path / "state" / "synthetic")
    without = [(line.class_name, line.prompt) for line in lines if "text feature" in line.decision]
    assert without == [(name, TEMPLATES[0].replace("{}", name)) for name in ("one", "two", "two")]
    text = encoder.encode_text([TEMPLATES[0].replace("{}", "one")])[0]
    assert float((keys.features.features[keys.features.labels == 1] @ text).max()) == pytest.approx(
        1, abs=1e-5
    )


def test_text_keys_are_a_template_each_and_no_two_are_equal(encoder: Encoder, tmp_path: Path) -> None:
    rows, lines = text_keys(encoder, "one", 1, TEMPLATES[:2], 5, 0)
    texts = encoder.encode_text([template.replace("{}", "one") for template in TEMPLATES[:2]])
    assert torch.allclose(rows[:2], texts, atol=1e-6)
    cosines = rows[2:] @ texts.T
    assert cosines[[0, 1, 2], [0, 1, 0]].tolist() == pytest.approx([0.995] * 3, abs=0.01)
    assert len({tuple(row) for row in rows.tolist()}) == 5
    assert torch.equal(rows, text_keys(encoder, "one", 1, TEMPLATES[:2], 5, 0)[0])
    assert not torch.equal(rows, text_keys(encoder, "one", 1, TEMPLATES[:2], 5, 1)[0])
    assert [line.prompt for line in lines[:2]] == [
        template.replace("{}", "one") for template in TEMPLATES[:2]
    ]
    keys = _keys(tmp_path, encoder, "text")
    assert (keys.origin.kind, keys.misread) == ("text", 0)
    assert keys.features.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_public_features_become_keys(encoder: Encoder, tmp_path: Path, suffix: str) -> None:
    images = [to_clip_image(glyph) for glyph in draw_glyphs(np.arange(12) % 3, 5)]
    features, labels = encoder.encode_images(images).numpy(), np.arange(12) % 3
    path = tmp_path / f"set.{suffix}"
    if suffix == "npz":
        np.savez(path, features=features.astype(np.float16), labels=labels)
    else:
        save_file({"features": features, "labels": labels}, path)
    keys = _keys(tmp_path, encoder, f"features:{path}")
    assert (keys.origin.kind, keys.origin.name, keys.origin.licence) == ("features", path.name, "unknown")
    assert torch.allclose(keys.features.features.norm(dim=1), torch.ones(6), atol=1e-3)
    best = (keys.features.features @ torch.from_numpy(features.T)).amax(dim=1)
    assert float(best.min()) > 0.999


def test_public_features_of_another_norm_are_refused_as_a_silos_are(encoder: Encoder, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "set.npz", features=np.ones((3, encoder.feature_dim), np.float32), labels=np.arange(3)
    )
    with pytest.raises(ConfigError, match="3 of 3 rows have not unit norm"):
        _keys(tmp_path, encoder, f"features:{tmp_path / 'set.npz'}")


@pytest.mark.parametrize("text", ["", "files:x", "file:", "paper "])
def test_prompts_that_are_no_choice_are_refused_before_anything_is_loaded(
    encoder: Encoder, tmp_path: Path, text: str
) -> None:
    with pytest.raises(ConfigError, match="write paper, dataset or file:PATH"):
        _keys(tmp_path, encoder, "no-such/model", prompts=text)


def test_an_empty_folder_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match="holds no picture"):
        _keys(tmp_path, encoder, f"folder:{tmp_path / 'nothing'}")

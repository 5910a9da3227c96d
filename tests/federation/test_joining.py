"""join from images, tables and feature files: resumable, in views, never downloading; the commitment names records."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cachefl_secure.cache import features as extraction
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation import joining
from cachefl_secure.federation.clip_source import ClipSource
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.joining import JoinChoices, Joined, join_federation
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.silo_files import EXTRACTION_FOLDER, SiloFiles, view_file
from cachefl_secure.names import Digest, SiloId
from cachefl_secure.transport.local_federation import run_local_rounds
from tests.small_federation import (
    CLASSES,
    FEATURE_DIM,
    found_coordinator,
    join_with_random_features,
    random_features,
)

NAMES = tuple(f"class {number}" for number in range(CLASSES))


class StandIn:
    """Some pixels, normalised. Stops at the nth batch if it is told to."""

    feature_dim = FEATURE_DIM
    weights_digest, preprocessing_digest = Digest("1" * 64), Digest("2" * 64)
    precision, image_size, device = "float32", (8, 8), torch.device("cpu")

    def __init__(self, stops_at: int | None = None) -> None:
        self.stops_at, self.batches = stops_at, 0

    def encode_images(self, images: Iterable[Image.Image]) -> Tensor:
        rows = [np.asarray(image.resize((4, 4)), dtype=np.float32)[..., 0].ravel() + 1 for image in images]
        if self.batches == self.stops_at:
            raise KeyboardInterrupt
        self.batches += 1
        return torch.nn.functional.normalize(torch.tensor(np.stack(rows)), dim=1)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()

    def opened(*_: object, offline: bool, **__: object) -> StandIn:
        assert offline  # at a silo, always
        return made

    monkeypatch.setattr(joining, "open_encoder", opened)
    monkeypatch.setattr(extraction, "SHARD", 16)
    return made


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    return found_coordinator(tmp_path / "coordinator")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty."""
    root = tmp_path / "images"
    for number in range(40):
        path = root / NAMES[number % CLASSES] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def join(coordinator: Path, root: Path, data: Path, **options: Any) -> Joined:
    choices = JoinChoices(
        name=root.name, images=data, clip=ClipSource("local-dir", "", root), not_private=True, **options
    )
    return join_federation(coordinator / "invite.toml", root, choices)


@pytest.mark.usefixtures("encoder")
def test_a_round_trains_on_the_view_whose_turn_it_is(coordinator: Path, images: Path, tmp_path: Path) -> None:
    join(coordinator, tmp_path / "a", images, views=3)
    files = SiloFiles.open(tmp_path / "a")
    views = files.views()
    assert (files.config.views, views.number_of_views, len(views)) == (3, 3, 40)
    for number in range(1, 8):
        assert torch.equal(files.records_of_round(number).features, views.views[(number - 1) % 3])
    assert torch.equal(files.records().features, views.views[0])
    assert not torch.equal(views.views[1], views.views[2])
    for view in range(3):
        assert files.state.path(view_file(view)).stat().st_mode & 0o777 == 0o600
    files.state.path(view_file(1)).write_bytes(files.state.path(view_file(2)).read_bytes())
    with pytest.raises(ConfigError, match="not the features that join extracted"):
        files.records_of_round(2)


@pytest.mark.usefixtures("encoder")
def test_copies_of_a_picture_are_counted_for_the_operator(
    coordinator: Path, images: Path, tmp_path: Path
) -> None:
    assert join(coordinator, tmp_path / "a", images).copies == 0
    for number in range(2):
        copy = images / NAMES[1] / f"copy-{number}.png"
        copy.write_bytes((images / NAMES[0] / "0.png").read_bytes())
    assert join(coordinator, tmp_path / "b", images).copies == 2


@pytest.mark.usefixtures("encoder")
def test_the_data_commitment_names_records_whatever_their_views(
    coordinator: Path, images: Path, tmp_path: Path
) -> None:
    join(coordinator, tmp_path / "a", images)
    shared = join(coordinator, tmp_path / "b", images, views=3, ledger=tmp_path / "a")
    one, three = (SiloFiles.open(tmp_path / name).config for name in "ab")
    assert (one.views, three.views) == (1, 3)
    assert one.data_commitment == three.data_commitment
    assert one.features_digest != three.features_digest
    assert not shared.has_other_records
    (images / NAMES[0] / "0.png").unlink()
    assert join(coordinator, tmp_path / "c", images, views=3, ledger=tmp_path / "a").has_other_records


def test_rounds_take_turns_over_the_views_and_are_charged_as_without(
    encoder: StandIn, coordinator: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachefl_secure.privacy import training

    names = [SiloId(f"s-{number}") for number in range(3)]
    join(coordinator, tmp_path / names[0], images, views=2)
    for number, name in enumerate(names[1:], 1):
        join_with_random_features(tmp_path / name, coordinator, name, 12, seed=number)
    files = CoordinatorFiles.open(coordinator)
    files.admit(files.candidates([tmp_path / name / "join-request.toml" for name in names]))
    seen: list[Tensor] = []
    genuine = training.train_privately

    def recording(model: Any, records: Any, *rest: Any, **options: Any) -> Any:
        if len(records) == 40:
            seen.append(records.features)
        return genuine(model, records, *rest, **options)

    monkeypatch.setattr(training, "train_privately", recording)
    run_local_rounds(
        coordinator,
        [tmp_path / name for name in names],
        3,
        deadline_seconds=60,
        progress=silent,
        tell=lambda _: None,
    )
    views = SiloFiles.open(tmp_path / names[0]).views().views
    assert [torch.equal(each, views[index]) for each, index in zip(seen, (0, 1, 0), strict=True)] == [
        True
    ] * 3
    with_views, without = (SiloFiles.open(tmp_path / name).verified_ledger() for name in names[:2])
    assert [spend.mechanism for spend in with_views.spends] == [spend.mechanism for spend in without.spends]


def test_a_join_that_was_stopped_goes_on_with_the_shard_it_was_in(
    encoder: StandIn, coordinator: Path, images: Path, tmp_path: Path
) -> None:
    root, encoder.stops_at = (
        tmp_path / "a",
        3,
    )  # batches of eight: the first shard is whole, the second half done
    with pytest.raises(KeyboardInterrupt):
        join(coordinator, root, images)
    assert [file.name for file in (root / EXTRACTION_FOLDER).iterdir()] == ["000000.safetensors"]
    assert root.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="no silo's directory"):
        SiloFiles.open(root)
    encoder.stops_at, encoder.batches = None, 0
    assert join(coordinator, root, images).records == 40
    assert encoder.batches == 3
    assert not (root / EXTRACTION_FOLDER).exists()


def test_a_join_that_fails_before_its_first_shard_leaves_nothing(
    encoder: StandIn, coordinator: Path, images: Path, tmp_path: Path
) -> None:
    (images / NAMES[0] / "0.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="cannot be read as an image"):
        join(coordinator, tmp_path / "a", images)
    assert not (tmp_path / "a").exists()
    joined = join(coordinator, tmp_path / "a", images, skip_unreadable=True)
    assert (joined.records, joined.skipped) == (39, ("class 0/0.png",))


@pytest.mark.usefixtures("encoder")
def test_a_source_of_nothing_but_broken_images_does_not_join(coordinator: Path, tmp_path: Path) -> None:
    (tmp_path / "broken" / NAMES[0]).mkdir(parents=True)
    (tmp_path / "broken" / NAMES[0] / "a.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match="none of 1 images can be read"):
        join(coordinator, tmp_path / "a", tmp_path / "broken", skip_unreadable=True)


@pytest.mark.usefixtures("encoder")
def test_a_table_joins_with_the_records_of_its_folder(
    coordinator: Path, images: Path, tmp_path: Path
) -> None:
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows(
            (path.relative_to(tmp_path), path.parent.name) for path in sorted(images.rglob("*.png"))
        )
    join(coordinator, tmp_path / "a", images)
    join(coordinator, tmp_path / "b", tmp_path / "list.csv", ledger=tmp_path / "a")
    folder, table = (SiloFiles.open(tmp_path / name) for name in "ab")
    assert torch.equal(folder.records().features, table.records().features)
    assert folder.config.data_commitment == table.config.data_commitment


def test_a_feature_file_joins_without_any_encoder(coordinator: Path, tmp_path: Path) -> None:
    records = random_features(30, 5)
    arrays = {"features": records.features.numpy(), "labels": records.labels.numpy()}
    np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]
    choices = JoinChoices(name="a", images=tmp_path / "mine.npz", clip=None, not_private=True)
    assert join_federation(coordinator / "invite.toml", tmp_path / "a", choices).records == 30
    files = SiloFiles.open(tmp_path / "a")
    assert torch.equal(files.records().features, records.features)
    assert files.config.clip == ""
    with pytest.raises(ConfigError, match="--views: needs images"):
        join_federation(
            coordinator / "invite.toml", tmp_path / "b", dataclasses.replace(choices, name="b", views=2)
        )
    np.savez(tmp_path / "wide.npz", features=np.eye(5, dtype=np.float32), labels=np.arange(5) % CLASSES)
    with pytest.raises(ConfigError, match=f"5-d, but the encoder is {FEATURE_DIM}-d"):
        join_federation(
            coordinator / "invite.toml",
            tmp_path / "b",
            dataclasses.replace(choices, name="b", images=tmp_path / "wide.npz"),
        )
    assert not (tmp_path / "b").exists()


def test_a_silo_toml_without_views_is_one_of_one_view(coordinator: Path, tmp_path: Path) -> None:
    root = join_with_random_features(tmp_path / "a", coordinator, SiloId("a"), 5, seed=1)
    text = (root / "silo.toml").read_text()
    (root / "silo.toml").write_text(
        "\n".join(line for line in text.splitlines() if not line.startswith("views"))
    )
    assert SiloFiles.open(root).config.views == 1
    assert len(SiloFiles.open(root).records_of_round(7)) == 5

"""Sources of records and --offline at the command line: exit codes, what is told, and no socket opened."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cachefl_secure.federation.coordinator_files import INVITE_FILE, CoordinatorFiles
from cachefl_secure.federation.enrolment import write_invite
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.plan import EncoderPlan
from cachefl_secure.transport.local_federation import run_local_rounds
from cachefl_secure_cli.main import app
from tests.small_federation import SmallFederation, found, random_features


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> SmallFederation:
    """After one round."""
    made = found(tmp_path_factory.mktemp("sources"), records=(5, 6, 7))
    silos = list(made.silos.values())
    run_local_rounds(made.coordinator, silos, 1, deadline_seconds=60, progress=silent, tell=lambda _: None)
    return made


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def told(result: Result, exit_code: int) -> str:
    assert result.exit_code == exit_code, result.output
    return re.sub(r"\s+", " ", result.stderr)


def save_features(path: Path, number: int = 24) -> Path:
    records = random_features(number, 9)
    np.savez(path, features=records.features.numpy(), labels=records.labels.numpy())
    return path


def test_evaluate_and_compare_take_features_without_any_encoder(
    federation: SmallFederation, tmp_path: Path
) -> None:
    data = save_features(tmp_path / "held-out.npz")
    for directory in (federation.coordinator, federation.silos[next(iter(federation.silos))]):
        result = invoke("evaluate", directory, "--data", data, "--json")
        assert told(result, 0) == ""
        assert json.loads(result.stdout)["result"]["zero_shot"]["records"] == 24
    words = ["--data", data, "--data", data, "--data", data, "--held-out", data, "--epsilons", "8"]
    result = invoke("compare", federation.coordinator, *words, "--json")
    assert len(json.loads(result.stdout)["result"]["grid"]) == 1


def test_join_takes_features_without_any_encoder(federation: SmallFederation, tmp_path: Path) -> None:
    data, invite = save_features(tmp_path / "mine.npz"), federation.coordinator / INVITE_FILE
    words = ("join", invite, tmp_path / "new", "--data", data, "--name", "new", "--no-wait", "--json")
    assert json.loads(invoke(*words, "--epsilon-cap", "9").stdout)["result"]["records"] == 24
    assert len(SiloFiles.open(tmp_path / "new").records()) == 24
    refused = invoke(*words[:2], tmp_path / "other", *words[3:], "--views", "3")
    assert "--views: needs images" in told(refused, 7)


def test_join_takes_a_pair_of_numpy_files(federation: SmallFederation, tmp_path: Path) -> None:
    records, invite = random_features(24, 9), federation.coordinator / INVITE_FILE
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "features.npy", records.features.numpy())
    np.save(tmp_path / "mine" / "labels.npy", records.labels.numpy())
    for name, data in (("by-file", tmp_path / "mine" / "features.npy"), ("by-folder", tmp_path / "mine")):
        words = (tmp_path / name, "--data", data, "--name", name, "--no-wait", "--json", "--epsilon-cap", "9")
        told(invoke("join", invite, *words), 0)
        assert SiloFiles.open(tmp_path / name).records().labels.tolist() == records.labels.tolist()


def test_a_directory_for_an_invite_is_refused_with_the_file_that_was_meant(
    federation: SmallFederation, tmp_path: Path
) -> None:
    words = ("--data", tmp_path, "--name", "new")
    meant = federation.coordinator / INVITE_FILE
    said = told(invoke("join", federation.coordinator, tmp_path / "a", *words), 7)
    assert f"is a directory; did you mean {meant}?" in said
    silo = next(iter(federation.silos.values()))
    said = told(invoke("join", silo), 7)  # as if a joined silo were started again by its directory alone
    assert f"the invite's file comes before it: join {silo / INVITE_FILE} {silo}" in said
    said = told(invoke("join", tmp_path, tmp_path / "a", *words), 7)
    assert f"give the file {INVITE_FILE}" in said
    assert not (tmp_path / "a").exists()


def test_a_table_whose_images_are_not_there_is_told_before_anything_is_encoded(
    federation: SmallFederation, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text("path,label\nabsent.png,class 0\n")
    words = ("--data", tmp_path / "list.csv", "--name", "new", "--clip", f"local-dir:{tmp_path}")
    said = told(invoke("join", federation.coordinator / INVITE_FILE, tmp_path / "a", *words), 7)
    assert "list.csv: record 1: 'absent.png' is not there" in said
    assert not (tmp_path / "a").exists()


def test_a_parquet_table_without_pyarrow_ends_with_the_line_that_installs_it(
    federation: SmallFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyarrow" else find(name, *rest)
    )
    (tmp_path / "list.parquet").touch()
    clip = ("--clip", f"local-dir:{tmp_path}")
    result = invoke("evaluate", federation.coordinator, "--data", tmp_path / "list.parquet", *clip)
    assert "pip install 'cachefl-secure[parquet]'" in told(result, 2)
    words = (federation.coordinator / INVITE_FILE, tmp_path / "a", "--data", tmp_path / "list.parquet")
    result = invoke("join", *words, "--name", "a", *clip)
    assert "pip install 'cachefl-secure[parquet]'" in told(result, 2)
    assert not (tmp_path / "a").exists()


def with_encoder(federation: SmallFederation, model: str, pretrained: str = "") -> Path:
    """The federation's invite, its plan under another encoder."""
    files = CoordinatorFiles.open(federation.coordinator)
    encoder: EncoderPlan = msgspec.structs.replace(files.plan.encoder, model=model, pretrained=pretrained)
    plan = msgspec.structs.replace(files.plan, encoder=encoder)
    return_path = federation.coordinator.parent / f"{model.replace('/', '-').replace(':', '-')}.toml"
    return_path.write_bytes(write_invite(plan, files.state.signing_key(), engine=""))
    return return_path


def one_image(tmp_path: Path) -> Path:
    (tmp_path / "images" / "class 0").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "class 0" / "a.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("model", "pretrained", "files", "option"),
    [
        (
            "hf-hub:maker/model",
            "",
            "open_clip_config.json and open_clip_model.safetensors",
            "--clip local-dir:FOLDER",
        ),
        (
            "ViT-B-32",
            "openai",
            "open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai",
            "--clip FILE",
        ),
    ],
)
def test_join_downloads_nothing_and_says_which_files_to_bring(
    federation: SmallFederation, tmp_path: Path, model: str, pretrained: str, files: str, option: str
) -> None:
    invite = with_encoder(federation, model, pretrained)
    result = invoke("join", invite, tmp_path / "a", "--data", one_image(tmp_path), "--name", "a")
    said = told(result, 7)
    assert files in said
    assert option in said
    assert not (tmp_path / "a").exists()


def test_a_file_for_an_encoder_that_is_a_folder_is_refused(
    federation: SmallFederation, tmp_path: Path
) -> None:
    invite = with_encoder(federation, "hf-hub:maker/model")
    words = ("--data", one_image(tmp_path), "--name", "a", "--clip", tmp_path / "w.safetensors")
    assert "give its folder, --clip local-dir:PATH" in told(invoke("join", invite, tmp_path / "a", *words), 7)


def test_offline_keeps_the_coordinator_from_the_hub_too(federation: SmallFederation, tmp_path: Path) -> None:
    data, clip = one_image(tmp_path), ("--clip", "hf-hub:maker/model", "--offline")
    picture = next(data.rglob("*.png"))
    for words in (
        ("evaluate", federation.coordinator, "--data", data),
        ("compare", federation.coordinator, "--data", data, "--held-out", data),
        ("predict", federation.coordinator, picture),
        ("init", tmp_path / "c", "--classes", "a,b"),
    ):
        said = told(invoke(*words, *clip), 7)
        assert "nothing is downloaded here; bring its open_clip_config.json" in said
    assert not (tmp_path / "c").exists()
    silo = next(iter(federation.silos.values()))  # a silo is offline without being told
    assert "nothing is downloaded here" in told(invoke("predict", silo, picture, *clip[:2]), 7)

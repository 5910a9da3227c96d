"""What init loads when nobody names a generator, and what its operator is told of the first keys."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.origin import CacheOrigin
from cachefl_secure.embedded import GENERATOR_DIR, GENERATOR_STEPS
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.clip_source import ClipSource
from cachefl_secure.federation.founding_choices import FoundingChoices
from cachefl_secure.federation.synthetic_images import FirstKeys
from cachefl_secure.plan import SecureSumPlan
from cachefl_secure_cli.picture_options import (
    DEFAULT_GENERATOR,
    picture_source,
    tell_of_fetching,
    tell_of_keys,
)
from tests.claims import REPOSITORY

USUAL: dict[str, Any] = {
    "prompts": "paper",
    "candidates": None,
    "steps": None,
    "guidance": None,
    "revision": None,
    "licence": "",
    "offload": False,
    "offline": False,
}
NOTHING = FeatureSet(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
SILENT = FirstKeys(NOTHING, CacheOrigin("diffusers", "a model", "apache-2.0", "ab" * 32), 0, {})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prompts", "dataset"),
        ("candidates", 9),
        ("steps", 5),
        ("guidance", 0.0),
        ("revision", "main"),
        ("offload", True),
    ],
)
@pytest.mark.parametrize("source", ["text", "folder:pictures", "features:some.npz"])
def test_an_option_of_drawing_is_refused_where_nothing_is_drawn(
    source: str, option: str, value: object
) -> None:
    with pytest.raises(ConfigError, match="none are drawn"):
        picture_source(source, None, **{**USUAL, option: value})
    assert picture_source(source, None, **USUAL)[0] == source


def test_the_embedded_generator_goes_with_the_embedded_clip_alone(capsys: pytest.CaptureFixture[str]) -> None:
    source, choices = picture_source(None, None, **USUAL)
    assert (source, choices.steps) == (str(GENERATOR_DIR), GENERATOR_STEPS)
    assert capsys.readouterr().err == ""
    source, choices = picture_source(None, "RN50", **USUAL)
    assert (source, choices.steps, choices.guidance) == (DEFAULT_GENERATOR, 4, 1.0)
    assert capsys.readouterr().err == ""


def test_a_default_generator_is_told_before_it_is_fetched_and_not_offline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(generator: str | None, **options: object) -> str:
        source, pictures = picture_source(generator, "RN50", **{**USUAL, **options})
        choices = FoundingChoices(
            name="any",
            classes=("a", "b"),
            templates=("{}",),
            clip=ClipSource("RN50", "openai"),
            generator=source,
            pictures=pictures,
            privacy=PrivacyChoices(),
            secure_sum=SecureSumPlan(),
        )
        tell_of_fetching(generator, choices)
        return capsys.readouterr().err

    said = told(None)
    assert f"no --generator: {DEFAULT_GENERATOR} (Apache-2.0) is fetched" in said
    assert told(None, offline=True) == told(DEFAULT_GENERATOR) == told("text") == ""


def test_a_named_generator_keeps_its_own_steps() -> None:
    source, choices = picture_source("organisation/model", "RN50", **{**USUAL, "guidance": 2.0})
    assert (source, choices.steps, choices.guidance) == ("organisation/model", None, 2.0)
    assert picture_source(None, "RN50", **{**USUAL, "guidance": 0.0})[1].guidance == 0.0


@pytest.mark.parametrize(
    ("licence", "is_told"),
    [
        ("apache-2.0", False),
        ("Apache License", False),
        ("MIT License", False),
        ("The MIT License (MIT)", False),
        ("bsd-3-clause", False),
        ("BSD 3-Clause License", False),
        ("creativeml-openrail-m", True),
        ("flux-non-commercial-license", True),
        ("mitre", True),
        ("unknown", True),
    ],
)
def test_any_licence_but_the_permissive_ones_is_told(
    licence: str, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_of_keys(replace(SILENT, origin=replace(SILENT.origin, licence=licence)))
    assert (repr(licence) in capsys.readouterr().err) is is_told


def test_missing_and_misread_pictures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    tell_of_keys(replace(SILENT, misread=3, without_picture={f"class {i}": i for i in range(1, 13)}))
    said = capsys.readouterr().err
    assert "text features stand in as keys of: class 1 (1), class 2 (2)" in said
    assert "and 2 more" in said
    assert "takes 3 of the kept pictures" in said


@pytest.mark.parametrize(
    ("arguments", "what_to_bring"),
    [
        (("--clip", "hf-hub:no-such-organisation/no-such-model"), "open_clip_config.json"),
        (("--clip", "embedded", "--generator", "no-such-organisation/no-such-model"), "model_index.json"),
    ],
)
def test_init_offline_says_which_files_to_bring(
    tmp_path: Path, arguments: tuple[str, ...], what_to_bring: str
) -> None:
    program = (
        "import socket\n"
        "def forbidden(*a, **k): print('THE NETWORK WAS ASKED'); raise OSError\n"
        "socket.socket.connect = socket.getaddrinfo = forbidden\n"
        "from cachefl_secure_cli.main import app; app()"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "init",
        str(tmp_path / "c"),
        "--classes",
        "zero,one",
        "--offline",
    ]
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "cli"), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert ended.returncode == 7, ended.stderr
    assert what_to_bring in ended.stderr
    assert "bring" in ended.stderr
    assert "THE NETWORK WAS ASKED" not in ended.stdout + ended.stderr

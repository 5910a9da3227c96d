"""init --dataset: classes, templates, alpha and beta of a data set that partition knows; what is given by hand wins."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cachefl_secure.datasets.table import DATA_SETS
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.plan import FederationPlan
from cachefl_secure_cli.main import app
from tests.datasets.layouts import lay_out

QUICK = ("--generator", "text", "-k", "2")
CALTECH = ("airplane", "b_two", "aardvark")


def invoke(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


def founded(directory: Path, *words: str | Path) -> tuple[FederationPlan, dict[str, Any]]:
    made = invoke("init", directory, *QUICK, *words, "--json")
    assert made.exit_code == 0, made.stderr
    return CoordinatorFiles.open(directory).plan, json.loads(made.stdout)["result"]


def test_the_file_of_a_partition_is_all_that_init_needs(tmp_path: Path) -> None:
    folder = lay_out(DATA_SETS["oxford_pets"], tmp_path)
    split = tmp_path / "split.json"
    dealt = invoke("partition", split, "--dataset", "oxford_pets", "--root", tmp_path, "--silos", "2")
    assert dealt.exit_code == 0, dealt.stderr
    shutil.rmtree(folder)
    plan, told = founded(tmp_path / "c", "--dataset", split)
    assert plan.classes == ("zebra", "b_two", "aardvark")
    assert plan.encoder.templates == ("a photo of a {}, a type of pet.",)
    assert (plan.cache.alpha, plan.cache.beta) == (1.17, 1.0)
    assert (told["alpha"], told["alpha_from"], told["beta"], told["beta_from"]) == (
        1.17,
        "table",
        1.0,
        "table",
    )


def test_what_is_given_by_hand_wins(tmp_path: Path) -> None:
    lay_out(DATA_SETS["caltech101"], tmp_path)
    source = ("--dataset", "Caltech101", "--root", tmp_path)
    plan, told = founded(tmp_path / "a", *source, "--beta", "4", "--template", "one {}")
    assert plan.classes == CALTECH
    assert plan.encoder.templates == ("one {}",)
    assert (plan.cache.alpha, plan.cache.beta) == (3.0, 4.0)
    assert (told["alpha_from"], told["beta_from"]) == ("table", "given")
    # Class names by hand: then the data set's files need not be here.
    plan, told = founded(tmp_path / "b", "--dataset", "caltech101", "--classes", "cat,dog", "--alpha", "7")
    assert plan.classes == ("cat", "dog")
    assert (plan.cache.alpha, plan.cache.beta) == (7.0, 1.0)
    assert (told["alpha_from"], told["beta_from"]) == ("given", "table")


def test_where_alpha_and_beta_come_from_is_told_without_a_data_set_too(tmp_path: Path) -> None:
    plan, told = founded(tmp_path / "a")
    assert (plan.cache.alpha, plan.cache.beta) == (10.0, 3.0)
    assert (told["alpha_from"], told["beta_from"]) == ("default", "default")
    shown = invoke("init", tmp_path / "b", *QUICK, "--alpha", "5")
    assert "5 (given) and 3 (default)" in shown.stdout
    assert "leave-one-out" not in shown.stderr
    shown = invoke("init", tmp_path / "c", *QUICK, "--alpha-beta", "leave-one-out")
    assert re.search(r"[\d.]+ and [\d.]+ \(by leave-one-out\)", shown.stdout)
    assert "no pictures with --generator text" in " ".join(shown.stderr.split())


def test_own_images_give_classes_and_no_settings(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(4):
            (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "own" / name / f"{number}.png").touch()
    assert invoke("partition", tmp_path / "own.json", "--images", tmp_path / "own").exit_code == 0
    plan, told = founded(tmp_path / "c", "--dataset", tmp_path / "own.json")
    assert plan.classes == ("cat", "dog")
    assert told["alpha_from"] == "default"
    refused = invoke("init", tmp_path / "d", "--dataset", tmp_path / "own.json", "--alpha-beta", "table")
    assert refused.exit_code == 7
    assert "of a data set that partition knows" in refused.stderr


@pytest.mark.parametrize("norm", ["sum", "mean"])
def test_a_table_made_for_sums_is_told_where_means_are_weighed(norm: str, tmp_path: Path) -> None:
    words = ("--dataset", "dtd", "--classes", "dots,lines", "--alpha-norm", norm)
    said = invoke("init", tmp_path / "c", *QUICK, *words).stderr
    assert ("--alpha-norm mean" in said) is (norm == "mean")


def test_silos_are_told_of_a_local_folder_and_of_names_that_folders_cannot_tell_apart(tmp_path: Path) -> None:
    from cachefl_secure.embedded import CLIP_DIR

    words = ("--classes", "A,a,b", "--clip", f"local-dir:{CLIP_DIR}")
    said = " ".join(invoke("init", tmp_path / "c", *QUICK, *words).stderr.split())
    assert f"every silo needs the files of {CLIP_DIR}" in said
    assert "`join --clip local-dir:PATH`" in said
    assert "classes 'A', 'a' differ only in case" in said


def test_a_delta_that_keeps_the_expected_silos_out_is_told(tmp_path: Path) -> None:
    said = " ".join(invoke("init", tmp_path / "a", *QUICK, "--delta", "0.001").stderr.split())
    assert "a silo of more than 100 records refuses to join, and 250 are expected" in said
    assert "refuses to join" not in invoke("init", tmp_path / "b", *QUICK).stderr

"""The main job, end to end: the demo as a process of its own, on real handwriting, with everything real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMANDS = [
    "init",
    "plan",
    *["join"] * 5,
    "admit",
    "round",
    "status",
    "budget",
    "audit",
    "compare",
    "evaluate",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a demo run at aggregate epsilon 2, and what it printed."""
    directory = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "cachefl_secure_cli", "demo", str(directory), "--epsilons", "2"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "COLUMNS": "200"}
    offline |= {"https_proxy": "http://127.0.0.1:9"}
    ran = subprocess.run(command, capture_output=True, text=True, env=offline, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return directory, ran.stdout


@pytest.mark.slow
def test_the_demo_prints_every_command_that_five_institutions_would_type(demo: tuple[Path, str]) -> None:
    typed = [line.split()[2] for line in demo[1].splitlines() if line.startswith("$ cachefl-secure ")]
    assert typed == COMMANDS


@pytest.mark.slow
def test_private_rounds_beat_the_synthetic_cache_and_a_silo_alone(demo: tuple[Path, str]) -> None:
    """One seed and fresh noise, so the bounds are looser than the goals over seeds in tests/bench/demo.py."""
    summary = json.loads((demo[0] / "summary.json").read_bytes())
    assert set(summary) >= {
        *("zero_shot", "synthetic_cache", "private", "non_private", "local_only", "delta", "seed")
    }
    private = summary["private"]
    assert [point["round"] for point in private] == list(range(1, 21))
    epsilons = [(point["epsilon_aggregate"], point["epsilon_local"]) for point in private]
    assert epsilons == sorted(epsilons)
    assert 1.99 < epsilons[-1][0] <= 2.0
    assert 4.3 < epsilons[-1][1] < 4.5  # each silo's share is half of the noise: four are in every sum
    assert summary["delta"] == 1e-5
    assert private[-1]["accuracy"] > summary["synthetic_cache"] + 0.06
    assert private[-1]["accuracy"] > summary["local_only"]
    assert summary["non_private"] > summary["synthetic_cache"] + 0.06
    assert 0.4 < summary["zero_shot"] < 0.95


@pytest.mark.slow
def test_the_demo_leaves_pictures_and_a_manifest_of_every_generated_image(demo: tuple[Path, str]) -> None:
    from PIL import Image

    for name in ("demo.png", "epsilons.png"):
        with Image.open(demo[0] / "report" / name) as picture:
            assert picture.size[0] >= 1000
    lines = (demo[0] / "coordinator/synthetic/manifest.jsonl").read_text().splitlines()
    kept = [line for line in map(json.loads, lines) if line["decision"] == "kept"]
    assert len(kept) == 40
    assert all(line["licence"] == "apache-2.0" and line["generator"] and line["sha256"] for line in kept)


@pytest.mark.slow
def test_a_finished_demo_is_replaced_and_anything_else_is_not(demo: tuple[Path, str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cachefl_secure_cli.main import app

    (tmp_path / "thesis.tex").write_text("precious")
    refused = CliRunner().invoke(app, ["demo", str(tmp_path)])
    assert refused.exit_code == 7
    assert "not an earlier demo" in refused.stderr
    assert (tmp_path / "thesis.tex").exists()
    assert (demo[0] / ".cachefl-secure-demo").exists()


@pytest.mark.slow
@pytest.mark.claim("C11")
def test_a_second_federation_over_the_records_of_the_demo_adds_up_in_the_first_ledger(
    demo: tuple[Path, str], tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from cachefl_secure_cli.main import app

    def answer(*words: object) -> dict[str, Any]:
        ran = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*map(str, words), "--json"])
        assert ran.exit_code == 0, ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)["result"]
        return found

    coordinator, silos = tmp_path / "coordinator", [tmp_path / f"again-{n}" for n in range(1, 4)]
    answer("init", coordinator, "--name", "second", "--rounds", "5", "--epsilon", "1")
    for number, silo in enumerate(silos, 1):
        words = ["--data", demo[0] / f"data/silo-{number}", "--name", silo.name]
        joined = answer(
            "join", coordinator / "invite.toml", silo, *words, "--ledger", demo[0] / f"silo-{number}"
        )
        assert not joined["has_other_records"]
    answer("admit", coordinator, *(silo / "join-request.toml" for silo in silos), "--yes")
    inside = [word for silo in silos for word in ("--in-process", str(silo))]
    refused = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["round", str(coordinator), *inside])
    assert refused.exit_code == 5  # the demo spent all that its silos had
    assert "again-1: budget-exhausted" in refused.stderr
    assert "0 are left" in refused.stderr
    (budget,) = answer("budget", silos[0])["silos"]
    assert (budget["rounds_charged"], budget["rounds_left"]) == (20, 0)
    assert 1.99 < budget["spent"]["aggregate"] <= 2.0

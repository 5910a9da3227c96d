"""A grid over alpha and beta at the command line, and the training that takes what it chose."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from typer.testing import CliRunner, Result

from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.grid_choices import DEFAULT_ALPHAS
from cachefl_secure.privacy_plan import GridPlan
from cachefl_secure_cli.main import app

SILOS = ("silo-1", "silo-2", "silo-3")


def invoke(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


def answer(*words: str | Path) -> Any:
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.output + result.stderr
    return json.loads(result.stdout)["result"]


def refusal(*words: str | Path) -> str:
    result = invoke(*words)
    assert result.exit_code == 7, result.output
    return flat(result.stderr)


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of three silos, in a folder."""
    folder, generator = tmp_path_factory.mktemp("features"), torch.Generator().manual_seed(5)
    for name in SILOS:
        rows = normalize(torch.randn(20, 64, generator=generator), dim=1)
        labels = torch.randint(0, 10, (20,), generator=generator)
        np.savez(folder / f"{name}.npz", features=rows.numpy(), labels=labels.numpy())
    return folder


USUAL = ("-k", "2", "--generator", "text", "--expected-records", "20")


def found(root: Path, features: Path, *words: str, ledgers: Path | None = None) -> Any:
    """A coordinator and three admitted silos in ``root``; what init told. Sentences stand for pictures."""
    coordinator = root / "coordinator"
    told = answer("init", coordinator, *USUAL, *words)
    for name in SILOS:
        mine: list[str | Path] = ["--data", features / f"{name}.npz", "--name", name, "--no-wait"]
        # The first ledger's caps are for all that comes into it, so they leave room for the training.
        mine += (
            ["--ledger", ledgers / name]
            if ledgers
            else ["--epsilon-cap", "9", "--epsilon-cap-aggregate", "9"]
        )
        joined = invoke("join", coordinator / "invite.toml", root / name, *mine)
        assert joined.exit_code == 0, joined.stderr
    admitted = invoke("admit", coordinator, *(root / name / "join-request.toml" for name in SILOS), "--yes")
    assert admitted.exit_code == 0, admitted.stderr
    return told


def in_process(root: Path) -> list[str | Path]:
    return [word for name in SILOS for word in ("--in-process", root / name)]


def test_a_grid_chooses_and_a_training_takes_it_out_of_the_same_budget(
    features: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    words = ("--mechanism", "grid", "--alphas", "3,1,30", "--betas", "1,5.5", "--epsilon", "2")
    told = found(first, features, *words)
    assert (told["mechanism"], told["alpha"], told["beta"]) == ("grid", 10.0, 3.0)
    assert told["learning_rate"] is None
    plan = CoordinatorFiles.open(first / "coordinator").plan
    assert isinstance(plan.privacy, GridPlan)
    assert (plan.privacy.alphas, plan.privacy.betas) == ((1.0, 3.0, 30.0), (1.0, 5.5))
    before = answer("status", first / "coordinator")
    assert (before["alpha"], before["beta"]) == (None, None)
    second_grid = ("--alpha-beta", f"grid:{first / 'coordinator'}")
    assert "has not happened yet" in refusal("init", tmp_path / "early", "--generator", "text", *second_grid)
    run = answer("round", first / "coordinator", *in_process(first))
    chosen = (run["alpha"], run["beta"])
    assert chosen in plan.privacy.pairs
    assert len(run["rounds"]) == 1
    for party in ("coordinator", *SILOS):
        status = answer("status", first / party)
        assert (status["alpha"], status["beta"]) == chosen
    assert f"{chosen[0]:g} and {chosen[1]:g}" in invoke("status", first / "silo-1").stdout

    grid_of = f"grid:{first / 'silo-2'}"
    told = found(second, features, "--rounds", "2", "--alpha-beta", grid_of, ledgers=first)
    assert (told["alpha"], told["beta"]) == chosen
    model = CoordinatorFiles.open(second / "coordinator").initial_model()
    assert (model.alpha, model.beta) == chosen
    run = answer("round", second / "coordinator", *in_process(second))
    assert (run["alpha"], run["beta"]) == (None, None)
    for directory in (first / "silo-1", second / "silo-1"):
        answer("ledger", "verify", directory, "--witness", second / "coordinator")
        (budget,) = answer("budget", directory)["silos"]
        assert (budget["rounds_charged"], budget["federations"]) == (2, 2)
    again = invoke("round", first / "coordinator", *in_process(first))
    assert again.exit_code == 7
    assert "round: grid is one release: it happens once, and it has" in again.stderr
    assert "plan.toml" not in again.stderr  # nobody has such a file


def test_join_warns_if_the_first_ledgers_caps_leave_no_room_for_the_training(
    features: Path, tmp_path: Path
) -> None:
    answer("init", tmp_path / "grid", *USUAL, "--mechanism", "grid", "--epsilon", "1")
    answer("init", tmp_path / "training", *USUAL, "--epsilon", "4", "--rounds", "20")
    mine = ("--data", features / "silo-1.npz", "--no-wait")
    invoke("join", tmp_path / "grid" / "invite.toml", tmp_path / "first", *mine, "--name", "first")
    joining = ("join", tmp_path / "training" / "invite.toml", tmp_path / "second", *mine, "--name", "second")
    said = flat(invoke(*joining, "--ledger", tmp_path / "first").stderr)
    (fitting,) = re.findall(r"(\w+) of 20 planned rounds fits? into the caps of the shared ledger", said)
    assert fitting == "none" or 0 < int(fitting) < 20
    assert f"epsilon_cap_aggregate in {tmp_path / 'first' / 'silo.toml'} to " in said.replace(" / ", "/")


def test_round_tells_what_was_chosen_and_what_to_do_with_it(features: Path, tmp_path: Path) -> None:
    found(tmp_path, features, "--mechanism", "grid", "--alpha-norm", "mean")
    shown = invoke("round", tmp_path / "coordinator", *in_process(tmp_path)).stdout
    status = answer("status", tmp_path / "coordinator")
    assert f"alpha and beta chosen: {status['alpha']:g} and {status['beta']:g}" in shown
    assert status["alpha"] in DEFAULT_ALPHAS
    assert f"--alpha-beta grid:{tmp_path / 'coordinator'}" in shown
    founded = invoke("init", tmp_path / "another-grid", "--mechanism", "grid", *USUAL).stderr
    assert "that leave room for the training: the caps of the first ledger bind" in flat(founded)
    taken = ("--alpha-beta", f"grid:{tmp_path / 'coordinator'}", "--generator", "text")
    founded = invoke("init", tmp_path / "training", "--alpha-norm", "mean", "-k", "5", *taken).stderr
    assert "join with `--ledger DIRECTORY_OF_THE_GRID`: both are charged to one budget" in flat(founded)
    told = answer("init", tmp_path / "same", "--alpha-norm", "mean", "-k", "5", *taken)
    assert told["alpha"] == status["alpha"]
    assert (told["alpha_from"], told["beta_from"]) == ("grid", "grid")
    told = answer("init", tmp_path / "summed", "-k", "5", *taken)
    assert told["alpha"] == pytest.approx(status["alpha"] / 5)
    assert "other classes" in refusal("init", tmp_path / "other", "--classes", "one,two", *taken)
    assert "other prompts" in refusal("init", tmp_path / "other", "--template", "a {}", *taken)
    assert not (tmp_path / "other").exists()


def test_plan_tells_what_a_grid_costs_and_that_there_is_no_second() -> None:
    words = "--mechanism grid --epsilon 1 --minimum-cohort 5 --minimum-survivors 5 --alphas 1,10 --betas 3"
    plan = answer("plan", *words.split())
    assert [point["rounds"] for point in plan["points"]] == [1]
    assert (plan["mechanism"]["kind"], plan["most_rounds"]) == ("grid", 1)
    assert plan["mechanism"]["dimension"] == "2"
    (point,) = plan["points"]
    assert 0.99 < point["cost"]["aggregate"] <= 1.0 < point["cost"]["local"] <= 8.0
    assert plan["noise_multiplier_aggregate"] == pytest.approx(2 * plan["noise_multiplier_local"])
    assert "stops by itself after 1 round." in invoke("plan", *words.split()).stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--mechanism grid --alphas one,2", "--alphas: 'one,2': write numbers separated by commas"),
        ("--mechanism grid --betas 1,nan", "--betas"),
        ("--mechanism grid --alphas 3 --betas 3", "2 to 256 pairs"),
        ("--mechanism grid --alphas 0,3", "alphas"),
        ("--mechanism grid --rounds 7", "--rounds: is about training; with --mechanism grid there is none"),
        ("--mechanism grid --gamma 2", "goes with --mechanism statistics"),
        ("--mechanism statistics --betas 1,2", "--betas: is of a grid: it goes with --mechanism grid"),
        ("--alphas 1,2", "--alphas: is of a grid: it goes with --mechanism grid"),
        ("--mechanism grid --server adam", "is about training"),
        ("--mechanism grid --trained class-residual", "is about training"),
        (
            "--alpha-beta guess",
            "--alpha-beta: 'guess' is none of given, table, leave-one-out and grid:DIRECTORY",
        ),
        ("--alpha-beta grid:", "is none of"),
        ("--alpha-beta grid:nowhere", "nowhere: no such directory"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(
    tmp_path: Path, words: str, sentence: str
) -> None:
    said = refusal("init", tmp_path / "coordinator", *words.split())
    assert sentence in said
    assert not (tmp_path / "coordinator").exists()

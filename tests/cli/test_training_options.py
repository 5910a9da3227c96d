"""init with every training option: the plan says it, and the first cache is as the plan says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cachefl_secure.cache.leave_one_out import choose_alpha_beta
from cachefl_secure.federation.chain import install_initial_cache
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.privacy_plan import LocalPlan
from cachefl_secure.server_plan import AdamServer
from cachefl_secure_cli.main import app


def invoke(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


def test_init_writes_every_training_option_into_the_plan(tmp_path: Path) -> None:
    coordinator = tmp_path / "coordinator"
    words = ["--trained", "class-residual", "--alpha-norm", "mean", "--alpha-beta", "leave-one-out"]
    words += ["--mechanism", "local", "--steps-per-round", "4", "--proximal", "0.1", "--replay-weight", "0.3"]
    words += ["--server", "adam", "-k", "2"]
    made = invoke("init", coordinator, *words, "--json")
    assert made.exit_code == 0, made.stderr
    files = CoordinatorFiles.open(coordinator)
    plan, model = files.plan, files.initial_model()
    assert (plan.cache.trained, plan.trained_rows) == ("class_residual", 10)
    assert isinstance(plan.server, AdamServer)
    assert 0.01 < plan.server.rate < 0.1
    assert isinstance(plan.privacy, LocalPlan)
    assert (plan.privacy.proximal, plan.privacy.replay_weight) == (0.1, 0.3)
    chosen = choose_alpha_beta(model, divisor=2)
    told = json.loads(made.stdout)["result"]
    assert (plan.cache.alpha, plan.cache.beta) == (chosen.alpha, chosen.beta) == (told["alpha"], told["beta"])
    assert (model.alpha, model.beta) == (chosen.alpha / 2, chosen.beta)
    content = (coordinator / "models/0000.safetensors").read_bytes()
    install_initial_cache(StateDir.create(tmp_path / "silo"), plan, content)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--proximal", "0.1"], "use --mechanism local"),
        (["--replay-weight", "0.1"], "use --mechanism local"),
        (["--mechanism", "local", "--proximal", "0.1"], "between the steps"),
        (["--server-rate", "0.5"], "has no rate"),
        (["--server", "adam", "--server-momentum", "1"], "momentum"),
        (["--server-momentum", "0.5"], "use --server momentum"),
        (["--mechanism", "statistics", "--server-rate", "0.5"], "is about training"),
        (["--server", "momentum", "--server-rate", "0"], "rate"),
        (["--gamma", "2"], "goes with --mechanism statistics"),
        (["--head", "ridge"], "goes with --mechanism statistics"),
        (["--mechanism", "statistics", "--clip-norm", "1"], "is about training"),
        (["--mechanism", "statistics", "--server", "adam"], "is about training"),
    ],
)
def test_an_option_without_effect_is_refused_before_pictures_are_made(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    result = invoke("init", tmp_path / "coordinator", *words)
    assert result.exit_code == 7
    assert sentence in " ".join(result.stderr.split())
    assert not (tmp_path / "coordinator").exists()


def test_plan_tells_what_one_row_a_class_costs() -> None:
    def dimension(*words: str) -> int:
        told = json.loads(invoke("plan", "--number-of-classes", "20", "-k", "8", *words, "--json").stdout)
        return int(told["result"]["mechanism"]["dimension"])

    assert dimension("--trained", "class-residual") * 8 == dimension() == 20 * 8 * 512

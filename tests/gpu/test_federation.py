"""`init`, `join`, `round` and `audit` with everything that can be on a GPU there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from cachefl_secure.embedded.digits import write_image_folders
from tests.claims import REPOSITORY


def cachefl_secure(folder: Path, *words: str) -> str:
    paths = (REPOSITORY, REPOSITORY / "cli")
    ran = subprocess.run(
        [sys.executable, "-m", "cachefl_secure_cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, (words, ran.stdout, ran.stderr)
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["distributed", "local"])
def test_a_federation_on_a_gpu_is_audited_like_any_other(tmp_path: Path, mechanism: str) -> None:
    write_image_folders(tmp_path / "digits", 0)
    on_gpu = ("--device", "cuda")
    cachefl_secure(
        tmp_path, "init", "c", "--mechanism", mechanism, "--rounds", "2", "--epsilon", "4", *on_gpu
    )
    silos = ["silo-1", "silo-2", "silo-3"]
    for silo in silos:
        cachefl_secure(tmp_path, "join", "c/invite.toml", "--data", f"digits/{silo}", "--name", silo, *on_gpu)
        settings = msgspec.toml.decode((tmp_path / silo / "silo.toml").read_text())
        assert settings["training_device"] == "cuda"
    cachefl_secure(tmp_path, "admit", "c", *(f"{silo}/join-request.toml" for silo in silos), "--yes")
    cachefl_secure(
        tmp_path, "round", "c", *(word for silo in silos for word in ("--in-process", silo)), "-n", "2"
    )
    audited = json.loads(cachefl_secure(tmp_path, "audit", "--json", "c", *silos))["result"]["audits"]
    assert len(audited) == 4
    for ledger in (audit["ledger"] for audit in audited[1:]):
        assert [charge["round"] for charge in ledger["rounds"]] == [1, 2]
        aggregate = [charge["epsilons"]["aggregate"] for charge in ledger["rounds"]]
        assert 0 < aggregate[0] < aggregate[1] <= 4
        assert ledger["insecure_rounds"] == 0

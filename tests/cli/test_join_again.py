"""join for a directory that has joined: started again, or asked for other records by mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cachefl_secure_cli.main import app
from tests.small_federation import CLASSES, FEATURE_DIM, found_coordinator, random_features


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def feature_file(path: Path, seed: int) -> Path:
    records = random_features(3 * CLASSES, seed)
    assert records.features.shape[1] == FEATURE_DIM
    np.savez(path, features=records.features.numpy(), labels=records.labels.numpy())
    return path


def test_other_records_are_refused_and_the_same_path_is_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invite = found_coordinator(tmp_path / "coordinator") / "invite.toml"
    mine, other = feature_file(tmp_path / "mine.npz", 1), feature_file(tmp_path / "other.npz", 2)
    monkeypatch.chdir(tmp_path)
    words = ("join", invite, "--name", "clinic-1")
    assert invoke(*words, "--data", mine).exit_code == 0
    before = (tmp_path / "clinic-1" / "features.safetensors").read_bytes()
    for same in (mine, mine.name, Path("clinic-1") / ".." / mine.name):  # a restart, typed this way or that
        again = invoke(*words, "--data", same)
        assert again.exit_code == 0, again.stderr
        assert "not read again" in again.stderr
    refused = invoke(*words, "--data", other)
    assert refused.exit_code == 7
    said = " ".join(refused.stderr.split())
    assert f"--data: {other}: clinic-1 has joined with the records of {mine}, and reads no others" in said
    assert "leave --data out, or join under another --name, with --ledger clinic-1" in said
    assert invoke(*words).exit_code == 0
    assert (tmp_path / "clinic-1" / "features.safetensors").read_bytes() == before

"""What predict shows are scores, and it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cachefl_secure.federation import accuracy
from cachefl_secure.federation.accuracy import Prediction
from cachefl_secure_cli.commands import predict
from cachefl_secure_cli.main import app
from tests.small_federation import found


def test_scores_are_not_written_like_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [Prediction(Path(name), (("four", 0.9999), ("nine", 0.0001))) for name in ("a.png", "b.png")]
    monkeypatch.setattr(accuracy, "predict_images", lambda *_, **__: listed)
    monkeypatch.setattr(predict, "encoder_when_needed", lambda *_, **__: lambda: None)
    coordinator = found(tmp_path).coordinator
    shown = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["predict", str(coordinator), "a.png", "b.png"])
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.count("four 1.000, nine 0.000") == 2
    assert shown.stdout.count("score of each class") == 1
    assert shown.stdout.count("no probability") == 1
    assert "%" not in shown.stdout

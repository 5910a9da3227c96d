"""What the pictures show: read from matplotlib's own objects, just before they are saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from cachefl_secure.cache.evaluate import Accuracy
from cachefl_secure.federation.accuracy import Evaluation, RoundAccuracy
from cachefl_secure.federation.comparison import Comparison, GridPoint
from cachefl_secure.federation.release_comparison import ReleasePoint
from cachefl_secure.privacy.accounting import Cost
from cachefl_secure_cli import figures

LEVEL = 0.7
"""Of zero-shot CLIP and of the synthetic cache alike, as with sentences for pictures."""


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that was saved."""
    found: list[Figure] = []
    genuine = Figure.savefig

    def save(self: Figure, *words: Any, **named: Any) -> None:
        genuine(self, *words, **named)
        found.append(self)

    monkeypatch.setattr(Figure, "savefig", save)
    return found


def accuracy(top1: float) -> Accuracy:
    return Accuracy(top1, top1, (top1,), 100)


def evaluation(epsilons: list[float]) -> Evaluation:
    rounds = [
        RoundAccuracy(number, Cost(2 * epsilon, epsilon), accuracy(LEVEL + 0.01 * number))
        for number, epsilon in enumerate(epsilons)
    ]
    return Evaluation(accuracy(LEVEL), tuple(rounds))


def comparison() -> Comparison:
    grid = tuple(
        GridPoint(epsilon, 2 * epsilon, 5.0, 0.8 + epsilon / 100, (0.7, 0.74)) for epsilon in (1.0, 2.0)
    )
    releases = tuple(
        ReleasePoint(epsilon=epsilon, epsilon_local=2 * epsilon, alone=0.7, fused=fused)
        for epsilon, fused in ((1.0, 0.76), (2.0, 0.78), (math.inf, 0.9))
    )
    return Comparison(20, 1e-5, "aggregate", LEVEL, LEVEL, (0.8, 0.87), grid, releases, 100)


def test_the_epsilon_scale_has_the_ticks_of_the_rounds_and_rounds_up_to_two_decimals(
    tmp_path: Path, saved: list[Figure]
) -> None:
    epsilons = [0.0, *(1.614 * number for number in range(1, 21))]
    figures.accuracy_by_round(tmp_path / "rounds.png", evaluation(epsilons), "retina")
    (axes,) = saved[0].axes
    (top,) = axes.child_axes
    assert top.get_xticks().tolist() == axes.get_xticks().tolist() == [0, 4, 8, 12, 16, 20]
    labels = [label.get_text() for label in top.get_xticklabels()]
    assert labels == ["0", "6.46", "12.92", "19.37", "25.83", "32.28"]
    assert all(spine.get_visible() for spine in axes.spines.values())
    assert saved[0].get_suptitle() == "Accuracy after each round: retina"


def test_rounds_without_noise_are_not_called_private(tmp_path: Path, saved: list[Figure]) -> None:
    figures.accuracy_by_round(tmp_path / "rounds.png", evaluation([0.0, math.inf, math.inf]), "open")
    labels = [str(line.get_label()) for line in saved[0].axes[0].lines]
    assert "rounds without noise (not private)" in labels
    assert "private rounds" not in labels


def test_zero_shot_is_seen_where_the_synthetic_cache_is_as_good(tmp_path: Path, saved: list[Figure]) -> None:
    figures.accuracy_by_round(tmp_path / "rounds.png", evaluation([0.0, 1.0]), "retina")
    figures.accuracy_by_epsilon(tmp_path / "epsilons.png", comparison())
    for figure in saved:
        *_, below, above = figure.axes[0].lines  # drawn in this order
        assert (below.get_label(), above.get_label()) == ("synthetic cache (epsilon 0)", "zero-shot CLIP")
        assert np.ptp(np.concatenate([np.asarray(below.get_ydata()), np.asarray(above.get_ydata())])) == 0
        assert below.get_linestyle() == "-"
        assert above.get_linestyle() == "--"
        assert below.get_linewidth() > above.get_linewidth()


def test_a_comparison_draws_the_closed_form_as_the_table_has_it(tmp_path: Path, saved: list[Figure]) -> None:
    figures.accuracy_by_epsilon(tmp_path / "epsilons.png", comparison())
    lines = {str(line.get_label()): line for line in saved[0].axes[0].lines}
    private = lines["closed form, one release, private"]
    assert np.asarray(private.get_xdata()).tolist() == [1.0, 2.0]
    assert np.asarray(private.get_ydata()).tolist() == pytest.approx([76.0, 78.0])
    without = lines["closed form, without noise (not private)"]
    assert set(np.asarray(without.get_ydata()).tolist()) == {90.0}
    assert "one release" in saved[0].get_suptitle()

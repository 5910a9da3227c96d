"""Pictures for people who would rather look than read. PNG through matplotlib, without a display."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachefl_secure.federation.accuracy import Evaluation
    from cachefl_secure.federation.comparison import Comparison

# Okabe and Ito (2008): told apart by colour-blind readers and in grey.
_BLUE, _ORANGE, _GREEN, _GREY, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#666666", "#CC79A7"


def accuracy_by_round(path: Path, evaluation: Evaluation, title: str) -> None:
    """One line, accuracy after each round, with the epsilon spent on a second scale."""
    figure, axes = _canvas(title)
    _private_line(axes, [(p.round, p.accuracy.top1, p.cost.aggregate) for p in evaluation.rounds])
    _level(axes, 100 * evaluation.zero_shot.top1, "zero-shot CLIP", _GREY, ":")
    _level(axes, 100 * evaluation.rounds[0].accuracy.top1, "synthetic cache (epsilon 0)", _ORANGE, "--")
    _finish(figure, axes, path, "round", "accuracy on held-out images, %")


def demo_picture(path: Path, summary: dict[str, Any], epsilon: float) -> None:
    """The demo's ``summary.json`` as one picture: private rounds between what costs nothing and everything."""
    figure, axes = _canvas("Five silos, real handwriting, one model")
    synthetic = 100 * summary["synthetic_cache"]
    without = [synthetic, *(100 * value for value in summary["non_private_by_round"])]
    axes.plot(
        range(len(without)),
        without,
        color=_GREEN,
        lw=1.8,
        label="same federation without noise (not private)",
    )
    points = [
        {"round": 0, "accuracy": summary["synthetic_cache"], "epsilon_aggregate": 0.0},
        *summary["private"],
    ]
    _private_line(axes, [(p["round"], p["accuracy"], p["epsilon_aggregate"]) for p in points])
    _level(axes, 100 * summary["local_only"], f"a silo alone (mean), epsilon {epsilon:g}", _PURPLE, "-.")
    _level(axes, synthetic, "synthetic cache (epsilon 0)", _ORANGE, "--")
    _level(axes, 100 * summary["zero_shot"], "zero-shot CLIP", _GREY, ":")
    _finish(figure, axes, path, "round", "accuracy on held-out images, %")


def accuracy_by_epsilon(path: Path, comparison: Comparison) -> None:
    """Accuracy together and alone against epsilon, between no private data and no privacy."""
    figure, axes = _canvas("What privacy costs")
    epsilons = [point.epsilon for point in comparison.grid]
    together = [100 * point.together for point in comparison.grid]
    alone = [100 * point.alone_mean for point in comparison.grid]
    low = [100 * min(point.alone) for point in comparison.grid]
    high = [100 * max(point.alone) for point in comparison.grid]
    _level(axes, 100 * comparison.non_private[-1], "together, without noise (not private)", _GREEN, "-")
    axes.plot(epsilons, together, "o-", color=_BLUE, lw=2.2, label="together, private")
    axes.plot(epsilons, alone, "s-.", color=_PURPLE, label="a silo alone, private (mean and range)")
    axes.fill_between(epsilons, low, high, color=_PURPLE, alpha=0.12, lw=0)
    _level(axes, 100 * comparison.synthetic_cache, "synthetic cache (epsilon 0)", _ORANGE, "--")
    _level(axes, 100 * comparison.zero_shot, "zero-shot CLIP", _GREY, ":")
    axes.set_xscale("log")
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.minorticks_off()
    what = (
        f"{comparison.view} epsilon of a silo after {comparison.rounds} rounds (delta {comparison.delta:g})"
    )
    _finish(figure, axes, path, what, "accuracy on held-out images, %")


def _private_line(axes: Any, points: Sequence[tuple[int, float, float]]) -> None:
    """(round, accuracy in [0, 1], epsilon) of each model."""
    numbers = [number for number, _, _ in points]
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.plot(
        numbers,
        [100 * top1 for _, top1, _ in points],
        "o-",
        color=_BLUE,
        lw=2.2,
        ms=4,
        label="private rounds",
    )
    _epsilon_scale(axes, numbers, [epsilon for _, _, epsilon in points])


def _epsilon_scale(axes: Any, numbers: Sequence[int], epsilons: Sequence[float]) -> None:
    """The aggregate epsilon spent, written along the top at the rounds where ticks are."""
    shown = [index for index, number in enumerate(numbers) if number % max(1, len(numbers) // 5) == 0]
    top = axes.secondary_xaxis("top")
    top.set_xticks(
        [numbers[index] for index in shown], [f"{math.ceil(10 * epsilons[index]) / 10:g}" for index in shown]
    )
    top.set_xlabel("aggregate epsilon spent by each silo", color=_GREY, fontsize=9)
    top.tick_params(colors=_GREY, labelsize=8)


def _level(axes: Any, value: float, label: str, colour: str, style: str) -> None:
    axes.axhline(value, color=colour, ls=style, lw=1.5, label=label)


def _canvas(title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
    return figure, figure.add_subplot()


def _finish(figure: Any, axes: Any, path: Path, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["right", "top"]].set_visible(False)
    figure.legend(fontsize=9, frameon=False, loc="outside lower center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)

"""Pictures for people who would rather look than read. PNG through matplotlib, without a display."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachefl_secure.wording import counted

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
    what = f"{comparison.view} epsilon of a silo after {counted(comparison.rounds, 'round')} (delta {comparison.delta:g})"
    _finish(figure, axes, path, what, "accuracy on held-out images, %")


def records_by_class(
    path: Path, counts: Any, silos: Sequence[str], classes: Sequence[str], title: str
) -> None:
    """Who holds what: ``counts`` (silos, classes) as shades, white for none, and each silo's sum as a bar."""
    figure, axes = _canvas(title)
    width, height = 4 + 0.12 * len(classes), 3.2 + 0.26 * len(silos)
    figure.set_size_inches(max(8.0, min(17.0, width)), max(4.0, min(16.0, height)))
    _shades(figure, axes, counts)
    _name_ticks(axes.xaxis, classes, rotation=90)
    _name_ticks(axes.yaxis, silos, rotation=0)
    _sums(axes.inset_axes((1.01, 0, 0.16, 1), sharey=axes), counts.sum(axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


_MOST_NAMES = 110  # written out along one side


def _shades(figure: Any, axes: Any, counts: Any) -> None:
    from matplotlib.colors import LogNorm

    most = max(2, int(counts.max()))
    # Under Dirichlet a few cells hold nearly all: on a linear scale all others would look empty.
    shades = axes.imshow(
        [[cell or math.nan for cell in row] for row in counts.tolist()],
        aspect="auto",
        interpolation="nearest",
        cmap="GnBu",
        norm=LogNorm(0.25, most),  # so that one record is not white: none is
    )
    ticks = [1, *(10**power for power in range(1, 8) if 10**power < 0.6 * most), most]
    bar = figure.colorbar(shades, ax=axes, location="bottom", shrink=0.5, aspect=40)
    bar.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    bar.minorticks_off()
    bar.ax.set_xlim(1, most)
    bar.set_label("records of a class in a silo (white: none)", fontsize=9)


def _sums(axes: Any, sums: Any) -> None:
    axes.barh(range(len(sums)), sums, color=_BLUE, height=0.7)
    if len(sums) <= _MOST_NAMES:
        for index, total in enumerate(sums):
            axes.text(total, index, f" {total:,}", va="center", fontsize=8, color=_GREY)
    axes.set_xlim(0, 1.5 * max(1, sums.max()))
    axes.set_title("records", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)


def _name_ticks(axis: Any, names: Sequence[str], *, rotation: int) -> None:
    """Every name where there is room, else every tenth or hundredth."""
    step = 1 if len(names) <= _MOST_NAMES else 10 ** math.ceil(math.log10(len(names) / _MOST_NAMES))
    shown = range(0, len(names), step)
    size = 8 if len(names) <= 40 else 6
    axis.set_ticks(shown, [_short(names[index]) for index in shown], fontsize=size, rotation=rotation)


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"


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

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
    from cachefl_secure.federation.release_comparison import ReleasePoint

# Okabe and Ito (2008): told apart by colour-blind readers and in grey.
_BLUE, _ORANGE, _GREEN, _GREY, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#444444", "#CC79A7"
_SKY = "#56B4E9"


def accuracy_by_round(path: Path, evaluation: Evaluation, federation: str) -> None:
    """One line, accuracy after each round, with the epsilon spent on a second scale."""
    figure, axes = _canvas(f"Accuracy after each round: {_short(federation)}")
    _private_line(axes, [(p.round, p.accuracy.top1, p.cost.aggregate) for p in evaluation.rounds])
    if evaluation.closed_form is not None:
        _level(axes, 100 * evaluation.closed_form.top1, "closed form alone", _SKY, "-.")
    _free_levels(axes, evaluation.rounds[0].accuracy.top1, evaluation.zero_shot.top1)
    _finish(figure, axes, path, "round", "accuracy on held-out images, %", framed=True)


def demo_picture(path: Path, summary: dict[str, Any], epsilon: float) -> None:
    """The demo's ``summary.json`` as one picture: private rounds between what costs nothing and everything."""
    figure, axes = _canvas("Accuracy after each round: five silos with real handwriting")
    synthetic = summary["synthetic_cache"]
    without = [100 * synthetic, *(100 * value for value in summary["non_private_by_round"])]
    axes.plot(
        range(len(without)),
        without,
        color=_GREEN,
        lw=1.8,
        label="same federation without noise (not private)",
    )
    points = [
        {"round": 0, "accuracy": synthetic, "epsilon_aggregate": 0.0},
        *summary["private"],
    ]
    _private_line(axes, [(p["round"], p["accuracy"], p["epsilon_aggregate"]) for p in points])
    _level(axes, 100 * summary["local_only"], f"a silo alone (mean), epsilon {epsilon:g}", _PURPLE, "-.")
    _free_levels(axes, synthetic, summary["zero_shot"])
    _finish(figure, axes, path, "round", "accuracy on held-out images, %", framed=True)


def accuracy_by_epsilon(path: Path, comparison: Comparison) -> None:
    """Accuracy together and alone against epsilon, between no private data and no privacy."""
    figure, axes = _canvas("Accuracy by epsilon: what privacy costs together, alone and in one release")
    epsilons = [point.epsilon for point in comparison.grid]
    together = [100 * point.together for point in comparison.grid]
    alone = [100 * point.alone_mean for point in comparison.grid]
    low = [100 * min(point.alone) for point in comparison.grid]
    high = [100 * max(point.alone) for point in comparison.grid]
    _level(axes, 100 * comparison.non_private[-1], "together, without noise (not private)", _GREEN, "-")
    axes.plot(epsilons, together, "o-", color=_BLUE, lw=2.2, label="together, private")
    axes.plot(epsilons, alone, "s-.", color=_PURPLE, label="a silo alone, private (mean and range)")
    axes.fill_between(epsilons, low, high, color=_PURPLE, alpha=0.12, lw=0)
    _releases(axes, comparison.releases)
    _free_levels(axes, comparison.synthetic_cache, comparison.zero_shot)
    axes.set_xscale("log")
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.minorticks_off()
    what = f"{comparison.view} epsilon of a silo after {counted(comparison.rounds, 'round')}, or one release (delta {comparison.delta:g})"
    _finish(figure, axes, path, what, "accuracy on held-out images, %")


def _releases(axes: Any, releases: Sequence[ReleasePoint]) -> None:
    """The closed form with text and cache, as the table has it: at each epsilon, and without noise."""
    private = [(point.epsilon, 100 * point.fused) for point in releases if math.isfinite(point.epsilon)]
    if private:
        epsilons, accuracies = zip(*private, strict=True)
        axes.plot(epsilons, accuracies, "D--", color=_SKY, ms=5, label="closed form, one release, private")
    for point in releases:
        if not math.isfinite(point.epsilon):
            label = "closed form, without noise (not private)"
            _level(axes, 100 * point.fused, label, _SKY, "-")


def records_by_class(
    path: Path, counts: Any, silos: Sequence[str], classes: Sequence[str], split: str
) -> None:
    """Who holds what: ``counts`` (silos, classes) as shades, white for none, and each silo's sum as a bar."""
    figure, axes = _canvas(f"Records by class and silo: {split}")
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
    epsilons = [epsilon for _, _, epsilon in points]
    is_private = all(map(math.isfinite, epsilons))
    axes.plot(
        numbers,
        [100 * top1 for _, top1, _ in points],
        "o-",
        color=_BLUE,
        lw=2.2,
        ms=4,
        label="private rounds" if is_private else "rounds without noise (not private)",
    )
    _epsilon_scale(axes, numbers, epsilons)


def _epsilon_scale(axes: Any, numbers: Sequence[int], epsilons: Sequence[float]) -> None:
    """The aggregate epsilon spent, along the top, at the rounds that are named along the bottom."""
    from cachefl_secure.privacy.statements import rounded_up

    every = max(1, len(numbers) // 5)
    shown = {n: epsilon for n, epsilon in zip(numbers, epsilons, strict=True) if n % every == 0}
    axes.set_xticks(list(shown), [str(number) for number in shown])
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(shown), [rounded_up(epsilon, 2) if epsilon else "0" for epsilon in shown.values()])
    top.set_xlabel("aggregate epsilon spent by each silo", color=_GREY, fontsize=9)
    top.tick_params(colors=_GREY, labelsize=8)


def _free_levels(axes: Any, synthetic_cache: float, zero_shot: float) -> None:
    """What costs no privacy, in [0, 1]. The two may be equal, so the second is thin dashes on a broad line."""
    _level(axes, 100 * synthetic_cache, "synthetic cache (epsilon 0)", _ORANGE, "-", width=3.0)
    _level(axes, 100 * zero_shot, "zero-shot CLIP", _GREY, (0, (3, 3)))


def _level(axes: Any, value: float, label: str, colour: str, style: Any, *, width: float = 1.5) -> None:
    axes.axhline(value, color=colour, ls=style, lw=width, label=label)


def _canvas(title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
    return figure, figure.add_subplot()


def _finish(figure: Any, axes: Any, path: Path, x_label: str, y_label: str, *, framed: bool = False) -> None:
    """``framed`` where there is a second scale along the top."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["right", "top"]].set_visible(framed)
    figure.legend(fontsize=9, frameon=False, loc="outside lower center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)

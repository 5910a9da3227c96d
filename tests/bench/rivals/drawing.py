"""The table as a picture: top-1 of every method, IID and Dirichlet side by side, data set by data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.rivals.method import Kind
from tests.bench.rivals.results import Row

# Okabe and Ito (2008), as in the program's own pictures.
COLOURS = {
    Kind.REFERENCE: "#999999",
    Kind.ALONE: "#CC79A7",
    Kind.CENTRAL: "#666666",
    Kind.MULTI_ROUND: "#E69F00",
    Kind.ONE_ROUND: "#009E73",
    Kind.OURS: "#0072B2",
    Kind.OURS_PRIVATE: "#56B4E9",
}
SHADES = {"IID": 0.45, "Dirichlet(0.1)": 1.0}
MOST_COLUMNS = 4


def draw(path: Path, rows: Sequence[Row]) -> None:
    """A panel for each data set; lines through zero-shot and, dotted, the best of ours without noise."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.data for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    columns = min(MOST_COLUMNS, len(names))
    lines = -(-len(names) // columns)
    picture = Figure(
        figsize=(3.4 + 3.1 * columns, 0.6 + (0.6 + 0.30 * len(methods)) * lines), layout="constrained"
    )
    FigureCanvasAgg(picture)
    panels = picture.subplots(lines, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(panels.flat):
        if place < len(names):
            _panel(axes, names[place], methods, rows)
        else:
            axes.set_axis_off()
    picture.suptitle(
        "Top-1 on test records: five silos, pale IID, full colour Dirichlet(0.1)",
        fontsize=13,
        x=0.01,
        ha="left",
    )
    _legend(picture, columns)
    picture.savefig(path, dpi=130)


def _panel(axes: Any, data: str, methods: Sequence[str], rows: Sequence[Row]) -> None:
    here = [row for row in rows if row.data == data]
    for row in here:
        below = 0.2 if row.partition == "Dirichlet(0.1)" else -0.2
        axes.barh(
            methods.index(row.method) + below,
            100 * row.mean("top1"),
            height=0.38,
            color=COLOURS[row.kind],
            alpha=SHADES[row.partition],
            xerr=100 * row.spread("top1"),
            error_kw={"lw": 0.9, "ecolor": "#222222"},
        )
    axes.set_yticks(range(len(methods)), [method.split(" (NOT")[0] for method in methods], fontsize=8)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    values = [100 * row.mean("top1") for row in here]
    axes.set_xlim(max(0.0, min(values) - 8), min(101.0, max(values) + 4))
    axes.set_title(data, fontsize=10, loc="left")
    axes.set_xlabel("top-1, %", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)


def _legend(picture: Any, columns: int) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=kind.value) for kind, colour in COLOURS.items()]
    picture.legend(
        handles=patches,
        loc="outside lower center",
        ncols=min(len(patches), 2 + 2 * columns),
        fontsize=8,
        frameon=False,
    )

"""Means and spreads over seeds: the table, the CSV file and the checks read the same rows."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rivals.method import Kind, Method, Numbers, Traffic
from tests.bench.rivals.methods import LOCAL_ONLY, OURS
from tests.bench.rivals.metrics import Quality

FIGURES = ("top1", "macro_f1", "worst_silo", "calibration_error")
MOST_LOST = 0.03


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one data set under one partition; a figure for each seed."""

    data: str
    partition: str
    method: str
    kind: Kind
    epsilon: str
    origin: str
    settings: str
    figures: tuple[Quality, ...]
    traffic: Traffic
    seconds: tuple[float, ...]

    def values(self, figure: str) -> list[float]:
        return [float(getattr(each, figure)) for each in self.figures]

    def mean(self, figure: str) -> float:
        return statistics.mean(self.values(figure))

    def spread(self, figure: str) -> float:
        """Standard deviation over seeds; 0 of one."""
        return statistics.stdev(self.values(figure)) if len(self.figures) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One method on one cell."""

    models: tuple[Quality, ...]
    traffic: Traffic
    seconds: float


def rows_of(data: str, partition: str, method: Method, numbers: Numbers, runs: Sequence[Run]) -> list[Row]:
    """One row; two for methods with a model for each silo: their mean, and the worst."""

    def row(name: str, one: Callable[[Sequence[float]], float]) -> Row:
        figures = tuple(_combined(run.models, one) for run in runs)
        settings = ", ".join(f"{key} {value:g}" for key, value in numbers.items())
        seconds = tuple(run.seconds for run in runs)
        return Row(
            data,
            partition,
            name,
            method.kind,
            method.epsilon,
            method.origin,
            settings,
            figures,
            runs[0].traffic,
            seconds,
        )

    if method.kind is not Kind.ALONE:
        return [row(method.name, statistics.mean)]
    return [row(f"{method.name}, mean silo", statistics.mean), row(f"{LOCAL_ONLY}, worst silo", min)]


def _combined(models: Sequence[Quality], one: Callable[[Sequence[float]], float]) -> Quality:
    """Of several models the silo that is served worst is still one silo, and the worst calibration the largest."""
    values = {name: [float(getattr(model, name)) for model in models] for name in FIGURES}
    error = max if one is min else one
    return Quality(
        one(values["top1"]),
        one(values["macro_f1"]),
        min(values["worst_silo"]),
        error(values["calibration_error"]),
    )


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Shares in [0, 1], bytes and CPU seconds."""
    names = [f"{figure}_{what}" for figure in FIGURES for what in ("mean", "spread")]
    before, after = (
        ("data", "partition", "method", "kind", "epsilon", "seeds"),
        ("bytes_up", "bytes_down", "cpu_seconds", "settings", "origin"),
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow((*before, *names, *after))
        for row in rows:
            figures = (f"{value:.5f}" for name in FIGURES for value in (row.mean(name), row.spread(name)))
            what = (row.data, row.partition, row.method, row.kind, row.epsilon, len(row.figures))
            cost = (row.traffic.up, row.traffic.down, f"{statistics.mean(row.seconds):.2f}")
            out.writerow((*what, *figures, *cost, row.settings, row.origin))


@dataclass(frozen=True, slots=True)
class Check:
    """A sentence with its number; ``met`` is None where it is told and not demanded."""

    text: str
    met: bool | None


def checks(rows: Sequence[Row]) -> list[Check]:
    """For each data set: what skew costs, CacheFL against every multi-round rival, and whether one round wins."""
    found: list[Check] = []
    for data in dict.fromkeys(row.data for row in rows):
        by = {(row.partition, row.method): row for row in rows if row.data == data}
        even, skewed = by["IID", OURS].mean("top1"), by["Dirichlet(0.1)", OURS].mean("top1")
        text = f"{data}: CacheFL at Dirichlet(0.1) {100 * (skewed - even):+.1f} points from IID (at least -3)"
        found.append(Check(text, skewed >= even - MOST_LOST))
        others = [row for (partition, _), row in by.items() if partition == "Dirichlet(0.1)"]
        for row in others:
            ahead = 100 * (skewed - row.mean("top1"))
            if row.kind is Kind.MULTI_ROUND:
                found.append(Check(f"{data}: CacheFL {ahead:+.1f} points on {row.method}", ahead >= 0))
        best = max((row for row in others if row.kind is Kind.ONE_ROUND), key=lambda row: row.mean("top1"))
        ahead = 100 * (best.mean("top1") - skewed)
        if ahead > 0:
            found.append(
                Check(f"{data}: {best.method} wins by {ahead:.1f} points; one round is enough", None)
            )
    return found

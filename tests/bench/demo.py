"""The demo's time and memory, and its accuracies over seeds.

    python tests/bench/demo.py --json            one run of `cachefl-secure demo`, time and memory
    python tests/bench/demo.py --seeds 5 --json  also the accuracy goals under both mechanisms, mean over seeds 0-4

Prints a list of ``{name, value, unit, against, target, met}``: the pattern for every file of this folder.
Each run is a process of its own, so that nothing is warm but the disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured figure; ``met`` is None where there is no target."""

    name: str
    value: float
    unit: str
    against: str
    target: str
    met: bool | None


EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
MECHANISMS = ("distributed", "local")


def run_demo(directory: Path, seed: int, mechanism: str) -> dict[str, Any]:
    """The demo's summary, with all epsilons in its grid."""
    target, grid = directory / f"{mechanism}-{seed}", ",".join(f"{epsilon:g}" for epsilon in EPSILONS)
    command = [sys.executable, "-m", "cachefl_secure_cli", "demo", str(target), "--mechanism", mechanism]
    subprocess.run([*command, "--seed", str(seed), "--epsilons", grid], check=True, capture_output=True)
    summary: dict[str, Any] = json.loads((target / "summary.json").read_bytes())
    return summary


def cost(directory: Path) -> list[Figure]:
    """The default demo, as `make demo` runs it."""
    started = time.monotonic()
    command = [sys.executable, "-m", "cachefl_secure_cli", "demo", str(directory / "default")]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return [
        Figure("demo wall clock", round(seconds, 1), "s", "goal, 2 cores", "< 90", seconds < 90),
        Figure("demo peak memory", round(peak / 1e9, 2), "GB", "goal", "< 2.5", peak < 2.5e9),
    ]


def accuracy(directory: Path, seeds: int) -> list[Figure]:
    """Means and worst cases over seeds, in per cent and points, delta 1e-5.

    Epsilons are aggregate with ``distributed`` (five survivors, one may collude) and local with ``local``.
    """
    runs = {
        mechanism: [run_demo(directory, seed, mechanism) for seed in range(seeds)] for mechanism in MECHANISMS
    }
    one, what = runs["distributed"], f"mean of seeds 0-{seeds - 1}"
    means = {
        "zero-shot CLIP": statistics.mean(100 * s["zero_shot"] for s in one),
        "synthetic cache": statistics.mean(100 * s["synthetic_cache"] for s in one),
        "without privacy": statistics.mean(100 * s["non_private"] for run in runs.values() for s in run),
    }
    for epsilon in EPSILONS:
        for mechanism, run in runs.items():
            means[f"{mechanism}, epsilon {epsilon:g}"] = statistics.mean(_grid(run, epsilon, "together"))
        alone = [x for run in runs.values() for x in _grid(run, epsilon, "alone")]
        means[f"a silo alone, epsilon {epsilon:g}"] = statistics.mean(alone)
        local = statistics.mean(_grid(one, epsilon, "epsilon_local"))
        means[f"local epsilon of distributed {epsilon:g}"] = local / 100
    figures = [
        Figure(name, round(value, 2), "" if name.startswith("local eps") else "%", what, "", None)
        for name, value in means.items()
    ]
    for mechanism, run in runs.items():
        gains = {epsilon: _gains(run, epsilon) for epsilon in EPSILONS}
        figures.append(
            _gain(f"{mechanism}: mean gain, epsilon 8", statistics.mean(gains[8.0]), "synthetic cache", 12)
        )
        figures += [
            _gain(f"{mechanism}: worst gain, epsilon {epsilon:g}", min(gains[epsilon]), "synthetic cache", 0)
            for epsilon in EPSILONS
            if epsilon <= 2
        ]
    for epsilon in EPSILONS:
        apart = means[f"distributed, epsilon {epsilon:g}"] - means[f"local, epsilon {epsilon:g}"]
        figures.append(_gain(f"distributed, epsilon {epsilon:g}", apart, "local", 0))
    return figures


def _grid(run: list[dict[str, Any]], epsilon: float, what: str) -> list[float]:
    """Per cent, of every seed; of ``alone`` the mean over silos."""
    points = [point for summary in run for point in summary["epsilon_grid"] if point["epsilon"] == epsilon]
    values = [statistics.mean(point[what]) if what == "alone" else point[what] for point in points]
    return [100 * value for value in values]


def _gains(run: list[dict[str, Any]], epsilon: float) -> list[float]:
    together = _grid(run, epsilon, "together")
    return [x - 100 * summary["synthetic_cache"] for x, summary in zip(together, run, strict=True)]


def _gain(name: str, points: float, against: str, target: float) -> Figure:
    return Figure(name, round(points, 1), "points", against, f">= {target}", points >= target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=0, help="also measure accuracy over this many seeds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = cost(Path(directory))
        if arguments.seeds:
            figures += accuracy(Path(directory), arguments.seeds)
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=1))
        return
    for figure in figures:
        goal = f"target {figure.target}: {'met' if figure.met else 'MISSED'}" if figure.target else ""
        print(f"{figure.name:38} {figure.value:8g} {figure.unit:7} against {figure.against:22} {goal}")


if __name__ == "__main__":
    main()

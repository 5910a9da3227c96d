"""The demo's time and memory, and its accuracies over seeds.

    python tests/bench/demo.py --json            one run of `cachefl-secure demo`, time and memory
    python tests/bench/demo.py --seeds 5 --json  also the accuracy goals, mean over seeds 0-4

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


EPSILONS = (0.5, 1.0, 2.0, 8.0)


def run_demo(directory: Path, seed: int, epsilon: float) -> dict[str, Any]:
    """The demo's summary."""
    command = [sys.executable, "-m", "cachefl_secure_cli", "demo", str(directory / f"{epsilon:g}-{seed}")]
    subprocess.run(
        [*command, "--seed", str(seed), "--epsilon", f"{epsilon:g}", "--epsilons", f"{epsilon:g}"],
        check=True,
        capture_output=True,
    )
    summary: dict[str, Any] = json.loads((directory / f"{epsilon:g}-{seed}" / "summary.json").read_bytes())
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
    """Means and worst cases over seeds, in per cent and points, delta 1e-5, mechanism local."""
    summaries = {
        epsilon: [run_demo(directory, seed, epsilon) for seed in range(seeds)] for epsilon in EPSILONS
    }
    eight = summaries[8.0]
    final = {epsilon: [100 * s["private"][-1]["accuracy"] for s in run] for epsilon, run in summaries.items()}
    means = {
        "zero-shot CLIP": statistics.mean(100 * s["zero_shot"] for s in eight),
        "synthetic cache": statistics.mean(100 * s["synthetic_cache"] for s in eight),
        **{f"private, epsilon {epsilon:g}": statistics.mean(values) for epsilon, values in final.items()},
        **{
            f"a silo alone, epsilon {epsilon:g}": statistics.mean(100 * s["local_only"] for s in run)
            for epsilon, run in summaries.items()
        },
        "without privacy": statistics.mean(100 * s["non_private"] for s in eight),
    }
    what = f"mean of seeds 0-{seeds - 1}"
    return [
        *(Figure(name, round(value, 1), "%", what, "", None) for name, value in means.items()),
        _gain(
            "mean gain, epsilon 8", statistics.mean(_gains(eight, "synthetic_cache")), "synthetic cache", 12
        ),
        _gain("mean gain, epsilon 8", statistics.mean(_gains(eight, "local_only")), "mean silo alone", 0),
        *(
            _gain(
                f"worst gain, epsilon {epsilon:g}", min(_gains(run, "synthetic_cache")), "synthetic cache", 0
            )
            for epsilon, run in summaries.items()
            if epsilon <= 2
        ),
    ]


def _gains(run: list[dict[str, Any]], over: str) -> list[float]:
    return [100 * (summary["private"][-1]["accuracy"] - summary[over]) for summary in run]


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
        print(f"{figure.name:28} {figure.value:8g} {figure.unit:7} against {figure.against:22} {goal}")


if __name__ == "__main__":
    main()

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


def run_demo(directory: Path, seed: int, epsilon: float) -> tuple[dict[str, Any], float]:
    """The demo's summary, and its wall-clock seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "cachefl_secure_cli", "demo", str(directory / f"{epsilon:g}-{seed}")]
    subprocess.run(
        [*command, "--seed", str(seed), "--epsilon", f"{epsilon:g}", "--epsilons", f"{epsilon:g}"],
        check=True,
        capture_output=True,
    )
    seconds = time.monotonic() - started
    return json.loads((directory / f"{epsilon:g}-{seed}" / "summary.json").read_bytes()), seconds


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
    """Mean gains in percentage points over seeds, at epsilon 8 and 2, delta 1e-5, mechanism local."""
    eight = [run_demo(directory, seed, 8.0)[0] for seed in range(seeds)]
    two = [run_demo(directory, seed, 2.0)[0] for seed in range(seeds)]
    final = [100 * s["private"][-1]["accuracy"] for s in eight]
    over_cache = statistics.mean(f - 100 * s["synthetic_cache"] for f, s in zip(final, eight, strict=True))
    over_alone = statistics.mean(f - 100 * s["local_only"] for f, s in zip(final, eight, strict=True))
    worst_at_two = min(100 * (s["private"][-1]["accuracy"] - s["synthetic_cache"]) for s in two)
    means = {
        "zero-shot CLIP": statistics.mean(100 * s["zero_shot"] for s in eight),
        "synthetic cache": statistics.mean(100 * s["synthetic_cache"] for s in eight),
        "private, epsilon 2": statistics.mean(100 * s["private"][-1]["accuracy"] for s in two),
        "private, epsilon 8": statistics.mean(final),
        "a silo alone, epsilon 8": statistics.mean(100 * s["local_only"] for s in eight),
        "without privacy": statistics.mean(100 * s["non_private"] for s in eight),
    }
    what = f"mean of seeds 0-{seeds - 1}"
    return [
        *(Figure(name, round(value, 1), "%", what, "", None) for name, value in means.items()),
        Figure(
            "gain, epsilon 8", round(over_cache, 1), "points", "synthetic cache", ">= 12", over_cache >= 12
        ),
        Figure("gain, epsilon 8", round(over_alone, 1), "points", "mean silo alone", "> 0", over_alone > 0),
        Figure(
            "worst seed, epsilon 2",
            round(worst_at_two, 1),
            "points",
            "synthetic cache",
            ">= 0",
            worst_at_two >= 0,
        ),
    ]


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

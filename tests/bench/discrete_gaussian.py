"""Speed of the exact discrete Gaussian, against inexact Gaussians and, where it can be imported, against OpenDP.

    python tests/bench/discrete_gaussian.py            4 M draws a figure; under a minute
    python tests/bench/discrete_gaussian.py --runs 25  for a busy machine

Times are CPU seconds of one thread, the least of several runs. What is compared runs in turns, so that a busy
machine slows all sides. numpy's generator is neither exact nor cryptographic; ``RandomStream.normals`` is not exact.
OpenDP (``pip install opendp``) samples exactly too, as Canonne, Kamath and Steinke wrote it, one value at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian, _cells_of
from cachefl_secure.privacy.noise import RandomStream

SCALES = (1.0, 16.0, 64.0, 1024.0, 30_000.0, 131_072.0, 1e6, 2.0**22)
DRAWS = 1 << 22
OPENDP_DRAWS = 20_000


@dataclass(frozen=True)
class Figure:
    """One measured figure; ``met`` is None where there is no target."""

    name: str
    value: float
    unit: str
    against: str
    target: str
    met: bool | None


def at_least(name: str, value: float, unit: str, against: str, target: float) -> Figure:
    return Figure(name, round(value, 3), unit, against, f">= {target:g}", value >= target)


def at_most(name: str, value: float, unit: str, against: str, target: float) -> Figure:
    return Figure(name, round(value, 3), unit, against, f"<= {target:g}", value <= target)


def plain(name: str, value: float, unit: str, against: str = "") -> Figure:
    return Figure(name, round(value, 3), unit, against, "", None)


def cpu_seconds(runs: int, tasks: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The least CPU time of each task, the tasks taken in turns. One turn before the first is not counted."""
    least = dict.fromkeys(tasks, float("inf"))
    for turn in range(runs + 1):
        for name, task in tasks.items():
            started = time.process_time()
            task()
            if turn:
                least[name] = min(least[name], time.process_time() - started)
    return least


def opendp_sampler(scale: float) -> Callable[[int], object] | None:
    """Exact discrete Gaussian noise of OpenDP for a vector of so many integers, or None without OpenDP."""
    try:
        import opendp.prelude as dp  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    dp.enable_features("contrib")
    space: Any = dp.vector_domain(dp.atom_domain(T="i32")), dp.l2_distance(T="f64")
    measurement = dp.m.make_gaussian(*space, scale=scale)
    return lambda count: measurement([0] * count)


def speed(runs: int) -> list[Figure]:
    stream, generator = RandomStream(), np.random.default_rng()
    narrow, wide = np.empty(DRAWS, np.int32), np.zeros(DRAWS, np.int64)
    tasks: dict[str, Callable[[], object]] = {
        "pcg64": lambda: generator.standard_normal(DRAWS),
    }
    for scale in SCALES:
        tasks[f"{scale:g}"] = lambda g=DiscreteGaussian(scale): g.fill(narrow, stream)  # type: ignore[misc]
        tasks[f"{scale:g}, added"] = lambda g=DiscreteGaussian(scale): g.add_to(wide, stream)  # type: ignore[misc]
    theirs = opendp_sampler(1024.0)
    if theirs is not None:
        tasks["opendp"] = lambda: theirs(OPENDP_DRAWS)
    least = cpu_seconds(runs, tasks)
    rate = {name: DRAWS / seconds / 1e6 for name, seconds in least.items()}
    figures = [
        plain("numpy PCG64 standard_normal", rate["pcg64"], "M/s"),
    ]
    for scale in SCALES:
        name = f"s = {scale:.7g}"
        figures += [
            at_least(f"draws a CPU second, {name}", rate[f"{scale:g}"], "M/s", "goal", 50),
            plain(f"added to 64-bit integers, {name}", rate[f"{scale:g}, added"], "M/s"),
            plain(f"speed, {name}", rate[f"{scale:g}"] / rate["pcg64"], "x", "numpy PCG64"),
        ]
    if theirs is not None:
        exact = OPENDP_DRAWS / least["opendp"] / 1e6
        figures.append(plain("OpenDP make_gaussian, s = 1024", exact, "M/s"))
        figures.append(plain("speed, s = 1024", rate["1024"] / exact, "x", "OpenDP"))
    return figures


def tables(runs: int) -> list[Figure]:
    tasks: dict[str, Callable[[], object]] = {
        f"{scale:g}": lambda scale=scale: _cells_of.__wrapped__(scale)  # type: ignore[misc]
        for scale in (16.0, 131_072.0, 2.0**22)
    }
    least = cpu_seconds(runs, tasks)
    return [at_most(f"tables, s = {name}", 1000 * least[name], "ms", "goal", 50) for name in tasks]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7, help="times that every figure is measured")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if opendp_sampler(1024.0) is None:
        print("without OpenDP: `pip install opendp` for it", file=sys.stderr)
    figures = [*speed(arguments.runs), *tables(arguments.runs)]
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=1))
        return
    print(f"| {'':45} | {'figure':>10} {'':5} | {'against':18} | {'goal':8} | |")
    print("| --- | --- | --- | --- | --- |")
    for figure in figures:
        met = {True: "met", False: "missed", None: ""}[figure.met]
        print(
            f"| {figure.name:45} | {figure.value:10g} {figure.unit:5} | {figure.against:18} | {figure.target:8} | {met} |"
        )


if __name__ == "__main__":
    main()

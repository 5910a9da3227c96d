"""compare: what privacy costs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachefl_secure.wording import counted
from cachefl_secure_cli.failures import explained
from cachefl_secure_cli.options import (
    SOURCES,
    Clip,
    Coordinator,
    Device,
    DeviceOption,
    Offline,
    Precision,
    PrecisionOption,
    SkipUnreadable,
    encoder_when_needed,
    tell_skipped,
)
from cachefl_secure_cli.output import (
    Json,
    console,
    epsilon_text,
    percent,
    print_json,
    progress_bar,
    table,
    write_report,
)

if TYPE_CHECKING:
    from cachefl_secure.federation.comparison import Comparison


@explained
def command(
    directory: Coordinator,
    data: Annotated[
        list[Path],
        typer.Option(help=f"One silo's images; repeat for each. {SOURCES}.", show_default=False),
    ],
    held_out: Annotated[Path, typer.Option(help="Images to measure on, as with --data.", show_default=False)],
    epsilons: Annotated[
        str,
        typer.Option(
            help="Epsilons after all rounds, separated by commas: aggregate ones if the plan is distributed, else local."
        ),
    ] = "1,2,4,8",
    figure: Annotated[Path | None, typer.Option(help="Also draw accuracy by epsilon into this PNG.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write every figure into this JSON file.")] = None,
    skip_unreadable: SkipUnreadable = False,
    clip: Clip = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Show what privacy costs in accuracy: together and alone, at several epsilons, and without noise.

    Trains from the federation's initial cache with its plan, on images that you may see together: public
    or consented ones. No ledger is charged, because nothing leaves.

    Example: cachefl-secure compare coordinator --data images-1 --data images-2 --held-out held-out
    """
    from cachefl_secure.federation.accuracy import read_records
    from cachefl_secure.federation.comparison import compare
    from cachefl_secure.federation.coordinator_files import CoordinatorFiles

    wanted = _epsilons(epsilons)
    files = CoordinatorFiles.open(directory)
    plan = files.plan
    encoder = encoder_when_needed(plan.encoder, clip, device, precision, offline=offline)
    with progress_bar(quiet=json) as progress:
        read = [
            read_records(source, plan, encoder, skip_unreadable=skip_unreadable, progress=progress)
            for source in (*data, held_out)
        ]
        *silos, measured_on = [records for records, _ in read]
        found = compare(files.initial_model(), silos, measured_on, plan, wanted, progress)
    tell_skipped(tuple(path for _, skipped in read for path in skipped))
    if figure is not None:
        from cachefl_secure_cli.figures import accuracy_by_epsilon

        accuracy_by_epsilon(figure, found)
    if report is not None:
        write_report(report, _plain(found))
    if json:
        print_json("compare", _plain(found))
        return
    console().print(_table(found))
    console().print(_advice(found))
    if figure is not None:
        console().print(f"figure: {figure}")


def _epsilons(text: str) -> list[float]:
    from cachefl_secure.errors import ConfigError

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError("--epsilons", "", f"{text!r}: write numbers separated by commas") from None
    if not all(0 < value <= 50 for value in values):
        raise ConfigError(
            "--epsilons", "", "each must be positive and at most 50; no noise is always compared"
        )
    return sorted(values)


def _table(found: Comparison) -> Any:
    rows = [
        ("zero-shot CLIP", "-", "-", percent(found.zero_shot), "-"),
        ("synthetic cache", "0", "0", percent(found.synthetic_cache), "-"),
    ]
    rows += [
        (
            f"noise multiplier {p.noise_multiplier:g}",
            epsilon_text(p.epsilon),
            epsilon_text(p.epsilon_local),
            percent(p.together),
            percent(p.alone_mean),
        )
        for p in found.grid
    ]
    rows.append(("no noise", "not private", "not private", percent(found.non_private[-1]), "-"))
    rows += [
        (
            "closed form, one release",
            epsilon_text(r.epsilon) if math.isfinite(r.epsilon) else "not private",
            epsilon_text(r.epsilon_local) if math.isfinite(r.epsilon) else "not private",
            f"{percent(r.fused)} (head alone {percent(r.alone)})",
            "-",
        )
        for r in found.releases
    ]
    caption = f"{counted(found.rounds, 'round')}, delta {found.delta:g}; fresh noise on every run; alone: both epsilons are the first"
    columns = ("model", "aggregate epsilon", "local epsilon", "together", "alone (mean)")
    return table("what privacy costs", columns, rows, caption=caption)


def _advice(found: Comparison) -> str:
    """Which of the two to found a federation with, from the figures above."""
    from cachefl_secure.federation.comparison import best_of

    ahead = best_of(found)
    private = [(epsilon, gain) for epsilon, gain in ahead if math.isfinite(epsilon)]
    if not private:
        text = (
            "One release of statistics is not ahead of rounds of training at any epsilon above, as far as "
            f"{counted(found.held_out, 'image')} can tell."
        )
        return text + "".join(
            f" Without noise, which is not private, the release is ahead by {100 * gain:.1f} points."
            for _, gain in ahead
        )
    where = ", ".join(f"epsilon {epsilon:g}" for epsilon, _ in private)
    most = 100 * max(gain for _, gain in private)
    behind = len(found.grid) - len(private)
    rest = f"; not at the other {behind}" if behind else ""
    return (
        f"One release of statistics is ahead of {counted(found.rounds, 'round')} of training at {where}, by up to {most:.1f} "
        f"points{rest}. There, found the federation with --mechanism statistics{_louder(found)}."
    )


def _louder(found: Comparison) -> str:
    gains = [release.alone - release.fused for release in found.releases if math.isfinite(release.epsilon)]
    return " and a larger --gamma, since the head alone is better" if min(gains) > 0 else ""


def _plain(found: Comparison) -> dict[str, Any]:
    grid = [dataclasses.asdict(point) | {"alone_mean": point.alone_mean} for point in found.grid]
    return dataclasses.asdict(found) | {"grid": grid}

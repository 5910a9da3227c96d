"""demo: the whole path on this machine, with the commands that five institutions would type."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cachefl_secure_cli.failures import explained
from cachefl_secure_cli.output import console, epsilon_text, percent, table, write_report

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUNDS = 20
_DELTA = 1e-5
_MARKER = ".cachefl-secure-demo"


@explained
def command(
    directory: Annotated[Path, typer.Argument(help="Where everything is written.")] = Path("demo-run"),
    mechanism: Annotated[
        Literal["distributed", "local"],
        typer.Option(
            help="distributed: the silos' shares of noise add up in the secure sum. local: each adds all of it."
        ),
    ] = "distributed",
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="After all rounds: the aggregate epsilon with distributed (default 2), the local one with local (default 8).",
            show_default=False,
        ),
    ] = None,
    epsilon_local: Annotated[
        float, typer.Option(help="With distributed: the most that a silo's local epsilon may become.")
    ] = 20.0,
    epsilons: Annotated[str, typer.Option(help="Epsilons to compare; the one above is added.")] = "1,2,4,8",
    seed: Annotated[
        int, typer.Option(help="Of the partition and the synthetic images. Noise is always fresh.")
    ] = 0,
    images_only: Annotated[
        bool,
        typer.Option(
            "--images-only", help="Only write the silos' handwriting as image folders, into DIRECTORY/data."
        ),
    ] = False,
) -> None:
    """Run a whole federation of five silos on this machine: real handwriting, a real CLIP, real noise.

    Every command is printed before it runs; in a real federation each party types its own. Takes half a
    minute on two idle cores, needs no network, and writes DIRECTORY/summary.json and pictures in DIRECTORY/report.

    Example: cachefl-secure demo demo-run
    """
    from cachefl_secure.embedded.digits import silo_folders, write_image_folders
    from cachefl_secure.federation.calibration import DEFAULT_EPSILON
    from cachefl_secure_cli.figures import demo_picture

    started = time.monotonic()
    _prepare(directory)
    images = directory / "data"
    write_image_folders(images, seed)
    folders = silo_folders(images)
    console().print(
        f"[bold]1,797 handwritten digits[/bold]: {len(folders)} silos by Dirichlet(0.3) and a held-out fifth, "
        f"in {images}"
    )
    if images_only:
        return
    report = directory / "report"
    target = DEFAULT_EPSILON[mechanism] if epsilon is None else epsilon
    privacy = ["--mechanism", mechanism, "--epsilon", f"{target:g}"]
    if mechanism == "distributed":
        # Five silos of which all must stay and one may collude: four shares of noise in every sum.
        privacy += [
            "--epsilon-local",
            f"{epsilon_local:g}",
            "--minimum-cohort",
            "5",
            "--minimum-survivors",
            "5",
        ]
    for arguments in _commands(directory, privacy, _grid(epsilons, target), seed, images, list(folders)):
        _type(arguments)
    summary = _summary(report, mechanism, target, seed)
    write_report(directory / "summary.json", summary)
    demo_picture(report / "demo.png", summary, target)
    _closing(summary, target, directory, time.monotonic() - started)


def _commands(
    directory: Path, privacy: list[str], grid: str, seed: int, images: Path, silos: Sequence[str]
) -> list[list[str]]:
    """What the parties type, in order."""
    coordinator, report, held_out = directory / "coordinator", directory / "report", images / "held-out"
    invite = coordinator / "invite.toml"
    parties = [str(directory / silo) for silo in silos]
    joins = [
        ["join", str(invite), str(directory / silo), "--data", str(images / silo), "--name", silo]
        for silo in silos
    ]
    requests = [f"{party}/join-request.toml" for party in parties]
    running = [word for party in parties for word in ("--in-process", party)]
    data = [word for silo in silos for word in ("--data", str(images / silo))]
    privacy = [*privacy, "--delta", f"{_DELTA:g}", "--rounds", str(ROUNDS)]
    pictures = ["--figure", str(report / "epsilons.png"), "--report", str(report / "comparison.json")]
    figures = ["--every-round", "--report", str(report / "evaluation.json")]
    return [
        ["init", str(coordinator), "--name", "digits", *privacy, "--seed", str(seed)],
        ["plan", str(coordinator)],
        *joins,
        ["admit", str(coordinator), *requests, "--yes"],
        ["round", str(coordinator), "-n", str(ROUNDS), *running],
        ["status", str(coordinator)],
        ["budget", *parties],
        ["audit", str(coordinator), *parties],
        ["compare", str(coordinator), *data, "--held-out", str(held_out), "--epsilons", grid, *pictures],
        ["evaluate", str(coordinator), "--data", str(held_out), *figures],
    ]


def _type(arguments: list[str]) -> None:
    """Prints the command as one would type it, then runs it in this process (imports are paid once)."""
    from cachefl_secure_cli.main import app

    console().print(f"\n[bold green]$ cachefl-secure {shlex.join(arguments)}[/bold green]")
    ended = app(arguments, standalone_mode=False)
    if isinstance(ended, int) and ended != 0:
        raise typer.Exit(ended)


def _prepare(directory: Path) -> None:
    """An empty directory; an earlier demo's is removed, anything else is refused."""
    from cachefl_secure.errors import ConfigError

    if (directory / _MARKER).is_file():
        shutil.rmtree(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(str(directory), "", "exists and is not an earlier demo: give another directory")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARKER).touch()


def _grid(text: str, epsilon: float) -> str:
    """The epsilons to compare with the demo's own among them."""
    values = {float(part) for part in text.split(",")} | {epsilon}
    return ",".join(f"{value:g}" for value in sorted(values))


def _summary(report: Path, mechanism: str, epsilon: float, seed: int) -> dict[str, Any]:
    from cachefl_secure_cli.output import read_report

    evaluation, comparison = read_report(report / "evaluation.json"), read_report(report / "comparison.json")
    (same,) = [point for point in comparison["grid"] if point["epsilon"] == epsilon]
    return {
        "mechanism": mechanism,
        "zero_shot": evaluation["zero_shot"]["top1"],
        "synthetic_cache": evaluation["rounds"][0]["top1"],
        "private": [
            {
                "round": point["round"],
                "accuracy": point["top1"],
                "epsilon_aggregate": point["epsilon_aggregate"],
                "epsilon_local": point["epsilon_local"],
            }
            for point in evaluation["rounds"][1:]
        ],
        "non_private": comparison["non_private"][-1],
        "non_private_by_round": comparison["non_private"],
        "local_only": same["alone_mean"],
        "epsilon_grid": comparison["grid"],
        "delta": _DELTA,
        "seed": seed,
    }


def _closing(summary: dict[str, Any], epsilon: float, directory: Path, seconds: float) -> None:
    from cachefl_secure_cli.output import peak_memory_bytes

    last = summary["private"][-1]
    rows = [
        ("zero-shot CLIP", "-", "-", percent(summary["zero_shot"])),
        ("synthetic cache, before any private data", "0", "0", percent(summary["synthetic_cache"])),
        *(
            (
                f"after private round {point['round']}",
                epsilon_text(point["epsilon_aggregate"]),
                epsilon_text(point["epsilon_local"]),
                percent(point["accuracy"]),
            )
            for point in summary["private"]
            if point["round"] % 5 == 0 or point["round"] == 1
        ),
        ("the same federation without noise", "not private", "not private", percent(summary["non_private"])),
        (
            f"a silo training alone (mean of 5), {len(summary['private'])} rounds",
            f"{epsilon:g}",
            f"{epsilon:g}",
            percent(summary["local_only"]),
        ),
    ]
    caption = (
        f"held-out handwriting; delta {_DELTA:g}; aggregate: at most one silo colludes with the coordinator and all five "
        "stay in every sum; local: against everybody else together"
    )
    console().print()
    console().print(
        table(
            "the demo in one table",
            ("model", "aggregate epsilon", "local epsilon", "top-1"),
            rows,
            caption=caption,
        )
    )
    gain = 100 * (last["accuracy"] - summary["synthetic_cache"])
    console().print(
        f"{gain:+.1f} points over the synthetic cache at aggregate epsilon {epsilon_text(last['epsilon_aggregate'])}; {seconds:.0f} s, "
        f"{peak_memory_bytes() / 1e9:.1f} GB of memory"
    )
    console().print(
        f"pictures: {directory / 'report' / 'demo.png'} and {directory / 'report' / 'epsilons.png'}"
    )
    console().print(f"figures: {directory / 'summary.json'}")

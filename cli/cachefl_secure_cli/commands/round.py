"""round: train together."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachefl_secure_cli.failures import explained, report, say
from cachefl_secure_cli.options import Coordinator
from cachefl_secure_cli.output import Json, console, epsilon_text, print_json, progress_bar, table

if TYPE_CHECKING:
    from cachefl_secure.federation.coordinator_round import RoundOutcome
    from cachefl_secure.transport.coordinating import Rounds


@explained
def command(
    directory: Coordinator,
    number: Annotated[
        int,
        typer.Option(
            "-n",
            "--number",
            min=0,
            help="How many rounds. 0: only bring silos up to date, and carry changes of the roster and approvals.",
        ),
    ] = 1,
    until: Annotated[
        int | None,
        typer.Option(
            min=1, help="Run until this round is done, instead of a number of them.", show_default=False
        ),
    ] = None,
    in_process: Annotated[
        list[Path] | None,
        typer.Option(
            "--in-process",
            help="A silo's directory on this machine to run in this process; repeat for each. For trials, and for "
            "federations without an engine.",
            show_default=False,
        ),
    ] = None,
    deadline: Annotated[float, typer.Option(min=1.0, help="Seconds a silo has for one phase.")] = 600.0,
    gather: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds that silos are waited for before a round begins without them."),
    ] = 60.0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Only the round that was interrupted, if there is one; begin no other."
        ),
    ] = False,
    give_up: Annotated[
        bool,
        typer.Option(
            "--give-up",
            help="Leave out a round that cannot be finished, because silos that signed it will not come back. "
            "What it cost them stays charged.",
        ),
    ] = False,
    keep_messages: Annotated[
        bool,
        typer.Option(
            "--keep-messages", help="Leave sealed messages in the mailbox when they have been read."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Run rounds: every silo trains with noise, the masked updates are summed, the record is signed.

    Silos that run `cachefl-secure join` at the federation's engine take part by themselves; one that does not
    answer in time counts as dropped. Interrupted? Run it again (with --until or --resume, so that not more rounds
    run than you meant): silos re-send the same noised update and pay nothing twice. A round that had its
    certificate is finished first.

    Example: cachefl-secure round coordinator -n 10
    """
    from cachefl_secure.errors import RoundAborted
    from cachefl_secure.federation.inspection import chosen_at
    from cachefl_secure.transport.coordinating import Rounds
    from cachefl_secure.transport.engines import run_rounds_at

    outcomes: list[RoundOutcome] = []
    asked = Rounds(
        number=number,
        until=until,
        resume=resume,
        give_up=give_up,
        deadline_seconds=deadline,
        gather_seconds=min(gather, deadline),
    )
    try:
        with progress_bar(quiet=json) as progress:
            run_rounds_at(
                directory,
                in_process or [],
                asked,
                progress=progress,
                tell=say,
                finished=outcomes.append,
                keep_parcels=keep_messages,
            )
    except RoundAborted as aborted:
        again = _again(directory, in_process or [], asked, done=len(outcomes))
        hint = f"nothing was revealed; see above who was missing, and when they are back run `{again}`"
        raise typer.Exit(report(aborted, hint)) from None
    finally:  # rounds that happened are shown also when a later one failed
        if not json and outcomes:
            console().print(_table(outcomes))
        alpha, beta = chosen_at(directory) if outcomes else (None, None)
        if json:
            rounds = [_plain(outcome) for outcome in outcomes]
            print_json("round", {"rounds": rounds, "alpha": alpha, "beta": beta})
        elif alpha is not None:
            console().print(
                f"alpha and beta chosen: {alpha:g} and {beta:g}; train with `cachefl-secure init NEW_DIRECTORY "
                f"--alpha-beta grid:{directory}`, which silos join with --ledger"
            )


def _again(directory: Path, silos: list[Path], asked: Rounds, *, done: int) -> str:
    """The command that does what is left of this one, however often it is run."""
    from cachefl_secure.federation.inspection import pending_round

    recorded, has_begun = pending_round(directory)
    if asked.resume:
        last = recorded + 1
    else:
        last = recorded + asked.number - done if asked.until is None else asked.until
    words = ["cachefl-secure", "round", str(directory)]
    for silo in silos:
        words += ["--in-process", str(silo)]
    words += ["--resume"] if has_begun and last == recorded + 1 else ["--until", str(last)]
    return shlex.join(words)


def _table(outcomes: list[RoundOutcome]) -> Any:
    rows = [
        (
            str(outcome.record.round),
            f"{len(outcome.record.survivors)} of {outcome.enrolled}",
            str(outcome.record.saturated),
            epsilon_text(outcome.cost.aggregate),
            epsilon_text(outcome.cost.local),
            outcome.record.cache_after[:16],
        )
        for outcome in outcomes
    ]
    columns = ("round", "silos in the sum", "clamped entries", "aggregate epsilon", "local epsilon", "cache")
    return table(
        "rounds",
        columns,
        rows,
        caption="the most any silo can have spent by then; `budget` has its own, and against whom each holds",
    )


def _plain(outcome: RoundOutcome) -> dict[str, Any]:
    record = outcome.record
    return {
        "round": record.round,
        "attempt": record.attempt,
        "survivors": list(record.survivors),
        "epsilon_local": outcome.cost.local,
        "epsilon_aggregate": outcome.cost.aggregate,
        "cache": record.cache_after,
        "saturated": record.saturated,
        "declined": dict(outcome.attendance.declined),
        "absent": sorted(outcome.attendance.absent),
        "rejected": dict(outcome.attendance.rejected),
    }

"""leave: take part no more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachefl_secure_cli.failures import explained, say
from cachefl_secure_cli.output import Json, console, print_json


@explained
def command(
    directory: Annotated[Path, typer.Argument(help="This silo's directory.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Leave the federation for ever, after the round that has begun.

    What this silo has spent stays spent, and stays in its ledger. The federation goes on without it; the coordinator
    may take its name out of the roster (`admit --remove`). Keep the directory: the ledger is the proof.

    Example: cachefl-secure leave clinic-1
    """
    from cachefl_secure.federation.silo_files import SiloFiles
    from cachefl_secure.federation.standing_aside import stand_aside

    if json and not yes:
        say("--json needs --yes: this cannot be taken back")
        raise typer.Exit(2)
    files = SiloFiles.open(directory)
    if not yes:
        typer.confirm(f"Shall {files.silo} leave {files.plan.name!r} for ever?", abort=True)
    stand_aside(files.state, "left")
    if json:
        print_json("leave", {"silo": files.silo, "stands_aside": "left"})
        return
    console().print(f"{files.silo} takes part in no further round; what serves for it may be ended.")

"""resume: take part again after a pause."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachefl_secure_cli.failures import explained
from cachefl_secure_cli.output import Json, console, print_json


@explained
def command(
    directory: Annotated[Path, typer.Argument(help="This silo's directory.", show_default=False)],
    json: Json = False,
) -> None:
    """Take part again after `cachefl-secure pause`. (The coordinator's `round --resume` is another thing.)

    Example: cachefl-secure resume clinic-1
    """
    from cachefl_secure.federation.silo_files import SiloFiles
    from cachefl_secure.federation.standing_aside import take_part_again

    files = SiloFiles.open(directory)
    take_part_again(files.state)
    if json:
        print_json("resume", {"silo": files.silo, "stands_aside": None})
        return
    console().print(f"{files.silo} takes part again.")

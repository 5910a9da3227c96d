"""pause: stand aside for a while."""

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
    """Stand aside from the next round on; `cachefl-secure resume` takes part again.

    The service need not be stopped for it. A round that has begun is finished. Nobody is asked, and nothing is spent.

    Example: cachefl-secure pause clinic-1
    """
    from cachefl_secure.federation.silo_files import SiloFiles
    from cachefl_secure.federation.standing_aside import stand_aside

    files = SiloFiles.open(directory)
    stand_aside(files.state, "paused")
    if json:
        print_json("pause", {"silo": files.silo, "stands_aside": "paused"})
        return
    console().print(f"{files.silo} takes part in no further round until `cachefl-secure resume`.")

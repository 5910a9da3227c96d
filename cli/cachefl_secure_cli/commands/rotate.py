"""rotate: a silo asks for a new signing key."""

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
    """Ask for a new signing key: make one, and a request that the old and the new one sign.

    Hand rotate-request.toml to the coordinator, who runs `admit` with it; the other silos `confirm`. The old
    key stays in use until the roster names the new one: then this silo goes over to it by itself, in its
    ledger too, and the old one is refused for ever. If the old key is lost, join anew under another name and
    have the old name removed; the records' epsilon then adds up over both ledgers (N18).

    Example: cachefl-secure rotate clinic-1
    """
    from cachefl_secure.federation.confirming import ask_for_new_key
    from cachefl_secure.federation.silo_files import SiloFiles
    from cachefl_secure.transport.engines import hand_over_request

    files = SiloFiles.open(directory)
    written, mark = ask_for_new_key(files)
    carried = hand_over_request(files, written)[:1]
    if json:
        print_json("rotate", {"silo": files.silo, "fingerprint": mark, "request": str(written)})
        return
    console().print(f"new fingerprint of {files.silo}: {mark}")
    request = f"hand over {written}" if carried else "the request waits for the coordinator's `admit`"
    console().print(f"{request}; read the new fingerprint to the coordinator and the other silos")

"""admit: decide who is in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachefl_secure_cli.failures import explained, say
from cachefl_secure_cli.options import Coordinator
from cachefl_secure_cli.output import Json, console, print_json, table


@explained
def command(
    directory: Coordinator,
    requests: Annotated[
        list[Path], typer.Argument(help="The silos' join-request.toml files.", show_default=False)
    ],
    yes: Annotated[
        bool, typer.Option("--yes", help="The fingerprints were compared with every silo; do not ask.")
    ] = False,
    json: Json = False,
) -> None:
    """Admit silos: show their fingerprints, ask, and sign the roster.

    Compare each fingerprint with what the silo's operator reads to you. A silo that slips in under
    another's name could take part in the sum.
    """
    from cachefl_secure.federation.coordinator_files import CoordinatorFiles

    files = CoordinatorFiles.open(directory)
    with files.state.lock():
        candidates = files.candidates(requests)
        rows = [(str(c.member.silo), c.fingerprint) for c in candidates]
        if not json:
            console().print(table("asking to be admitted", ("silo", "fingerprint"), rows))
        if not (yes or json):
            typer.confirm("Did every silo read out exactly its fingerprint above?", abort=True)
        if json and not yes:
            say("--json needs --yes: a program cannot compare fingerprints")
            raise typer.Exit(2)
        admitted = files.admit(candidates)
    from cachefl_secure.protocol.parameters import RoundParameters, explain

    parameters = RoundParameters.derive(files.plan, admitted, admitted)
    chosen = files.plan.secure_sum
    explained = explain(admitted, chosen.colluders, chosen.minimum_survivors, chosen.dropout_percent)
    if json:
        members = [{"silo": silo, "fingerprint": mark} for silo, mark in rows]
        print_json("admit", {"members": members, "threshold": parameters.threshold, "explained": explained})
        return
    console().print(
        f"{admitted} silos admitted. A round needs {parameters.minimum_survivors} of them; "
        f"{parameters.colluders} may collude with the coordinator without seeing more than the sum."
    )
    console().print(f"{explained}.")

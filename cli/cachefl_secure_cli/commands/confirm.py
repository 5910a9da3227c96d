"""confirm: a silo agrees to a change of the roster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachefl_secure_cli.failures import explained, say
from cachefl_secure_cli.output import Json, console, print_json, table


@explained
def command(
    directory: Annotated[Path, typer.Argument(help="This silo's directory.", show_default=False)],
    proposal: Annotated[
        Path | None,
        typer.Argument(
            help="The coordinator's roster-change.bin. Default: the one that came with the last round.",
            show_default=False,
        ),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(help="The change's fingerprint as another silo reads it to you; refuses any other."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="The change was compared with the other silos; do not ask.")
    ] = False,
    json: Json = False,
) -> None:
    """Approve a change of the roster: show who comes, goes or has a new key, ask, and sign.

    Nothing changes before a quorum of the silos has approved. Ask each new silo for its fingerprint, and the
    other silos for the fingerprint of the change: if yours differs, somebody shows you another one. A silo
    approves one change of a roster and never another, so talk first. To refuse, do nothing.

    Example: cachefl-secure confirm clinic-1 roster-change.bin --expect "1f2e ..."
    """
    from cachefl_secure.crypto.spoken import in_words
    from cachefl_secure.federation.confirming import check_expected, confirm_change, show_change
    from cachefl_secure.federation.silo_files import SiloFiles

    if json and not yes:
        say("--json needs --yes: a program cannot compare fingerprints")
        raise typer.Exit(2)
    files = SiloFiles.open(directory)
    shown = show_change(files, proposal)
    if expect is not None:
        check_expected(shown, expect)
    if not json:
        title = f"change to epoch {shown.epoch}: {shown.spoken}\n{in_words(shown.spoken)}"
        console().print(table(title, ("", "silo", "fingerprint"), shown.rows()))
    if not yes:
        typer.confirm(f"Shall {files.silo} approve exactly this change, and no other?", abort=True)
    written = confirm_change(files, shown)
    if json:
        rows = [list(row) for row in shown.rows()]
        result = {"silo": files.silo, "epoch": shown.epoch, "change": rows}
        print_json("confirm", result | {"fingerprint": shown.spoken, "approval": str(written)})
        return
    console().print(
        f"{files.silo} approves. The coordinator's next `round` fetches the approval, or hand over {written}."
    )

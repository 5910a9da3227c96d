"""status: where a party stands."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from cachefl_secure_cli.failures import explained, say
from cachefl_secure_cli.options import Party
from cachefl_secure_cli.output import Json, console, print_json, table


@explained
def command(directory: Party, json: Json = False) -> None:
    """Say where a party stands and what it waits for.

    At the coordinator also who asks to be admitted, if the engine can be reached.

    Example: cachefl-secure status coordinator
    """
    from cachefl_secure.crypto.spoken import in_words
    from cachefl_secure.federation.inspection import status

    found = status(directory)
    engine, asking = _at_the_engine(directory) if found.role == "coordinator" else ("", ())
    if json:
        result = dataclasses.asdict(found) | {"silos": dict(found.silos)}
        print_json("status", result | {"engine": engine, "asking": list(asking)})
        return
    rows = [
        ("role", found.role),
        ("fingerprint", found.fingerprint),
        ("the same in words", in_words(found.fingerprint)),
        ("enrolled", "yes" if found.enrolled else "not yet"),
        ("rounds", f"{found.rounds} of {found.rounds_planned} planned"),
        ("waiting for", found.waiting_for),
    ]
    if found.alpha is not None:
        rows.append(("alpha and beta chosen", f"{found.alpha:g} and {found.beta:g}"))
    if found.epoch:
        at = f"epoch {found.epoch}: {found.roster_fingerprint}"
        rows[4:4] = [("roster", at), ("the same in words", in_words(found.roster_fingerprint))]
    if found.roster_change:
        rows.append(("change of the roster", found.roster_change))
    if found.new_key:
        rows.append(("new key", found.new_key))
    if engine:
        rows.append(("engine", engine))
    rows += [(f"silo {silo}", how) for silo, how in found.silos.items()]
    rows += [(f"silo {silo}", "asks: look at it with `cachefl-secure admit`") for silo in asking]
    console().print(table(f"federation {found.federation!r}", ("", ""), rows))


def _at_the_engine(directory: Path) -> tuple[str, tuple[str, ...]]:
    """The engine, or why it cannot be looked at, and who asks there to be admitted."""
    from cachefl_secure.errors import MissingExtra, TransportError
    from cachefl_secure.federation.coordinator_files import CoordinatorFiles
    from cachefl_secure.transport.engines import waiting_requests

    files = CoordinatorFiles.open(directory)
    if not files.engine:
        return "", ()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return files.engine, tuple(sorted(waiting_requests(files, say, Path(scratch))))
    except (MissingExtra, TransportError) as error:
        return f"{files.engine} (cannot be reached: {error})", ()

"""status: where a party stands."""

from __future__ import annotations

import dataclasses

from cachefl_secure_cli.failures import explained
from cachefl_secure_cli.options import Party
from cachefl_secure_cli.output import Json, console, print_json, table


@explained
def command(directory: Party, json: Json = False) -> None:
    """Say where a party stands and what it waits for."""
    from cachefl_secure.crypto.spoken import in_words
    from cachefl_secure.federation.inspection import status

    found = status(directory)
    if json:
        print_json("status", dataclasses.asdict(found) | {"silos": dict(found.silos)})
        return
    rows = [
        ("role", found.role),
        ("fingerprint", found.fingerprint),
        ("the same in words", in_words(found.fingerprint)),
        ("enrolled", "yes" if found.enrolled else "not yet"),
        ("rounds", f"{found.rounds} of {found.rounds_planned} planned"),
        ("waiting for", found.waiting_for),
    ]
    if found.epoch:
        at = f"epoch {found.epoch}: {found.roster_fingerprint}"
        rows[4:4] = [("roster", at), ("the same in words", in_words(found.roster_fingerprint))]
    if found.roster_change:
        rows.append(("change of the roster", found.roster_change))
    rows += [(f"silo {silo}", how) for silo, how in found.silos.items()]
    console().print(table(f"federation {found.federation!r}", ("", ""), rows))

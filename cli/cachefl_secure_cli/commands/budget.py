"""budget: what was spent and what is left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from cachefl_secure_cli.failures import explained
from cachefl_secure_cli.output import Json, console, epsilon_text, print_json, table


@explained
def command(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="SILO...", help="One or more silos' directories.", show_default=False),
    ],
    json: Json = False,
) -> None:
    """Show the privacy budget of silos: spent, cap, what is left, and the sentence that may be said.

    Every figure is recomputed from the verified ledger. No torch, no network.

    Example: cachefl-secure budget clinic-1 clinic-2
    """
    from cachefl_secure.federation.budget import silo_budget
    from cachefl_secure.privacy.statements import IN_PLACE_OF_CAPS

    budgets = [silo_budget(directory) for directory in directories]
    if json:
        print_json("budget", {"silos": [dataclasses.asdict(budget) for budget in budgets]})
        return
    rows = [
        (
            str(b.silo),
            str(b.rounds_charged),
            f"{epsilon_text(b.spent.aggregate)} of {b.caps.aggregate:g}",
            f"{epsilon_text(b.spent.local)} of {b.caps.local:g}",
            str(b.rounds_left),
            f"{epsilon_text(b.projected.aggregate)}, {epsilon_text(b.projected.local)} "
            f"after {b.rounds_projected} more"
            if b.rounds_projected
            else "-",
        )
        for b in budgets
    ]
    columns = ("silo", "rounds charged", "aggregate epsilon", "local epsilon", "rounds left", "projected")
    delta = ", ".join(sorted({f"{delta:g}" for b in budgets for delta in (b.delta.local, b.delta.aggregate)}))
    console().print(table("privacy budget", columns, rows, caption=f"delta {delta}; adjacency: one record"))
    # Where nothing can be claimed, both sentences say so in the same words.
    said = list(dict.fromkeys(statement for budget in budgets for statement in budget.statements[:2]))
    meter = (
        budgets[0].statements[2] if len(budgets) == 1 else f"Spent so far: see the table. {IN_PLACE_OF_CAPS}"
    )
    for statement in (*said, meter):
        console().print(statement)

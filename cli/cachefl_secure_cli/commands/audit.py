"""audit: check everything again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachefl_secure_cli.failures import explained
from cachefl_secure_cli.output import Json, console, print_json

if TYPE_CHECKING:
    from cachefl_secure.federation.inspection import Audit


@explained
def command(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIRECTORY...", help="Coordinator's or silos' directories.", show_default=False
        ),
    ],
    json: Json = False,
) -> None:
    """Verify ledgers, signatures, records and caches in numbered steps, every epsilon by two accountants.

    Give every directory you have: a ledger that was rolled back shows only against heads that others
    hold. Exits 6 at the first step that does not hold, and names it. What no audit of files can show:
    that the noise was really drawn.

    Example: cachefl-secure audit coordinator clinic-1 clinic-2
    """
    from cachefl_secure.federation.inspection import audit_coordinator, audit_silo
    from cachefl_secure.federation.witnesses import is_silo, witnessed_heads

    witnessed = witnessed_heads(directories)
    audits = [
        audit_silo(path, witnessed) if is_silo(path) else audit_coordinator(path) for path in directories
    ]
    if json:
        print_json("audit", {"audits": [_plain(audit) for audit in audits]})
        return
    for audit in audits:
        console().print(f"[bold]{audit.party}[/bold]: every step holds")
        for step in audit.steps:
            console().print(f"  ({step.number}) {step.what}: {step.finding}")


def _plain(audit: Audit) -> dict[str, Any]:
    report = audit.ledger
    ledger = None
    if report is not None:
        ledger = {
            "entries": report.entries,
            "head": report.head,
            "delta": report.delta,
            "epsilons": dataclasses.asdict(report.spent),
            "epsilons_second_accountant": dataclasses.asdict(report.second),
            "insecure_rounds": report.insecure_rounds,
            "rounds": [
                {
                    "plan": spend.plan_digest,
                    "round": spend.round,
                    "epsilons": dataclasses.asdict(spend.after),
                    "epsilons_second_accountant": dataclasses.asdict(second),
                }
                for spend, second in zip(report.spends, report.second_opinions, strict=True)
            ],
        }
    steps = [dataclasses.asdict(step) for step in audit.steps]
    return {"party": audit.party, "steps": steps, "ledger": ledger}

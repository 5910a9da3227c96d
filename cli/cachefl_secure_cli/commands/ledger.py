"""ledger show, verify, export: for the silo that owns a ledger and for anybody who audits it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cachefl_secure.wording import counted
from cachefl_secure_cli.failures import explained, say
from cachefl_secure_cli.help_texts import help_of
from cachefl_secure_cli.output import Json, console, epsilon_text, print_json, table

if TYPE_CHECKING:
    from cachefl_secure.names import Digest
    from cachefl_secure.privacy.entries import AnyBody
    from cachefl_secure.privacy.ledger_report import LedgerReport
    from cachefl_secure.privacy.listing import Listing

group = typer.Typer(
    no_args_is_help=True,
    help="Show, verify or export a silo's privacy ledger. None of these writes to it, and none needs torch.",
)

LedgerPath = Annotated[
    Path,
    typer.Argument(
        metavar="SILO", help="A silo's directory, or a ledger file that was handed over.", show_default=False
    ),
]


@explained
def show(ledger: LedgerPath, json: Json = False) -> None:
    """List every entry: what was agreed, charged, sent, received and aborted.

    Form, chain and signatures are checked; `ledger verify` checks what the entries claim.

    Example: cachefl-secure ledger show clinic-1
    """
    found = _listing(ledger)
    if json:
        print_json("ledger show", {"public_keys": list(found.public_keys), "entries": found.plain()})
        return
    rows = [_row(body) for body in found.bodies]
    columns = ("entry", "what", "round", "aggregate epsilon", "local epsilon", "time")
    console().print(table("privacy ledger", columns, rows, caption=f"head {found.hashes[-1]}"))


@explained
def verify(
    ledger: LedgerPath,
    witness: Annotated[
        list[Path] | None,
        typer.Option(
            help="A directory of somebody else (the coordinator, another silo) whose records and receipts "
            "name heads of this ledger; repeat for several. Without, a shortened or rewritten ledger is not noticed.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            help="A head of this ledger that you wrote down earlier, 64 hex digits.", show_default=False
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="The public key that must have signed it, 64 hex digits, from a source of your own.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Verify a ledger in numbered steps and compute every epsilon again, by two accountants and in both views.

    Example: cachefl-secure ledger verify clinic-1 --witness coordinator
    """
    from cachefl_secure.names import Digest, PublicKeyHex
    from cachefl_secure.privacy.ledger import verify_ledger

    listed, file = _listing(ledger), _file(ledger)
    others = {Digest(_hex64(text, "--head")) for text in head or []} | _witnessed(listed, witness or [])
    own = _own_heads(ledger)
    *earlier, present = listed.public_keys
    expected = present if key is None else PublicKeyHex(_hex64(key, "--key"))
    anchors = [(None, each) for each in sorted(own | others)]
    report = verify_ledger(file, expected, anchors=anchors, earlier_keys=earlier)
    if json:
        print_json(
            "ledger verify",
            {
                **_plain(report),
                "public_keys": list(listed.public_keys),
                "heads_in_own_records": len(own),
                "witnessed_heads": len(others),
            },
        )
        return
    for line in _steps(report, len(own), len(others)):
        console().print(line)
    _advice(listed, key, bool(others))


@explained
def export(
    ledger: LedgerPath,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)],
    format: Annotated[
        Literal["json", "csv"] | None,
        typer.Option(
            help="json keeps everything; csv has a row for each entry. Default: csv if the file's name ends so, else json.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
) -> None:
    """Write all entries into one JSON or CSV file, numbers as exact as the ledger has them.

    Example: cachefl-secure ledger export clinic-1 -o clinic-1.csv
    """
    from cachefl_secure.errors import ConfigError
    from cachefl_secure_cli.output import write_report

    found = _listing(ledger)
    if output.exists() and not force:
        raise ConfigError(str(output), "", "exists; give another name, or --force to replace it")
    if (format or ("csv" if output.suffix.lower() == ".csv" else "json")) == "csv":
        output.write_text(found.as_csv(), encoding="utf-8", newline="")
    else:
        write_report(output, {"public_keys": list(found.public_keys), "entries": found.plain()})
    console().print(f"{len(found.bodies)} entries: {output}")


for _command in (show, verify, export):
    group.command(_command.__name__, help=help_of(_command))(_command)


def _file(ledger: Path) -> Path:
    from cachefl_secure.federation.silo_files import CONFIG_FILE, LEDGER_FILE, SiloFiles
    from cachefl_secure.privacy.listing import ledger_file

    if (ledger / CONFIG_FILE).is_file():
        ledger = SiloFiles.open(ledger).ledger_owner().state.root
    return ledger_file(ledger, LEDGER_FILE)


def _own_heads(ledger: Path) -> set[Digest]:
    """Heads of this ledger in the records that its own directories hold."""
    from cachefl_secure.federation.silo_files import CONFIG_FILE, SiloFiles

    if not (ledger / CONFIG_FILE).is_file():
        return set()
    return {head for _, head in SiloFiles.open(ledger).witnessed_heads()}


def _witnessed(listed: Listing, witnesses: list[Path]) -> set[Digest]:
    """Heads of this ledger that the witnesses hold, in whichever federation; each must hold some.

    Raises:
        ConfigError: a witness knows nothing of this ledger, or not yet: it would seem to have been asked.
    """
    from cachefl_secure.errors import ConfigError
    from cachefl_secure.federation.witnesses import why_no_head, witnessed_heads

    held: set[Digest] = set()
    for witness in witnesses:
        by_key = witnessed_heads([witness])
        found = {head for key in listed.public_keys for head in by_key.get(key, ())}
        if not found:
            raise ConfigError(str(witness), "--witness", why_no_head(witness, listed.public_keys))
        held |= found
    return held


def _listing(ledger: Path) -> Listing:
    from cachefl_secure.privacy.listing import listing

    return listing(_file(ledger))


def _hex64(text: str, option: str) -> str:
    from cachefl_secure.errors import ConfigError

    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise ConfigError(option, "", f"{text[:80]!r}: write 64 lower-case hex digits")
    return text


def _row(body: AnyBody) -> tuple[str, ...]:
    from cachefl_secure.privacy.entries import SpendEntry, number

    kind = body.__struct_config__.tag
    epsilons = ("", "")
    if isinstance(body, SpendEntry):
        epsilons = epsilon_text(number(body.aggregate_after)), epsilon_text(number(body.local_after))
    return str(body.sequence), str(kind), str(getattr(body, "round", "")), *epsilons, body.time


def _steps(report: LedgerReport, own: int, witnessed: int) -> list[str]:
    """The numbered steps of ``privacy.verification``, with what each found."""
    spent, second = report.spent, report.second
    charged = f"{counted(len(report.spends), 'round')} charged"
    return [
        f"[green]ok[/green]  (1) to (6)  {counted(report.entries, 'entry', 'entries')} of silo {report.silo}: known, canonical, in one chain, all signed",
        f"[green]ok[/green]  (7)         {charged}, none twice, each with one update",
        "[green]ok[/green]  (8)         every mechanism is accountable, and counts on no more silos than there are",
        f"[green]ok[/green]  (9)         epsilon, computed again: aggregate {epsilon_text(spent.aggregate)}, local "
        f"{epsilon_text(spent.local)} at delta {report.delta!r}; never falls, within the caps",
        f"[green]ok[/green]  (10)        second accountant, a looser bound for comparison: aggregate {epsilon_text(second.aggregate)}, local {epsilon_text(second.local)}",
        f"[green]ok[/green]  (11)        in the chain: {own} heads in this silo's own records, {witnessed} that others hold",
        f"head        {report.head}",
    ]


def _advice(listed: Listing, key: str | None, witnessed: bool) -> None:
    from cachefl_secure.crypto.sign import fingerprint

    if key is None:
        say(f"signed by {fingerprint(listed.public_keys[-1])}: compare it with the roster, or give --key")
    if not witnessed:
        say(
            "no witnessed heads: a ledger that was cut short or written anew passes; give --witness or --head"
        )


def _plain(report: LedgerReport) -> dict[str, Any]:
    return {
        "silo": report.silo,
        "entries": report.entries,
        "head": report.head,
        "delta": report.delta,
        "epsilon_aggregate": report.spent.aggregate,
        "epsilon_local": report.spent.local,
        "second_accountant_aggregate": report.second.aggregate,
        "second_accountant_local": report.second.local,
        "rounds": [
            {
                "round": spend.round,
                "plan": spend.plan_digest,
                "epsilon_aggregate": spend.after.aggregate,
                "epsilon_local": spend.after.local,
                "second_accountant_aggregate": second.aggregate,
                "second_accountant_local": second.local,
            }
            for spend, second in zip(report.spends, report.second_opinions, strict=True)
        ],
    }

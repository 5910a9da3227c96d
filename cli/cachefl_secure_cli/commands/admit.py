"""admit: decide who is in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachefl_secure.wording import counted
from cachefl_secure_cli.failures import explained, say
from cachefl_secure_cli.options import Coordinator
from cachefl_secure_cli.output import Json, console, print_json, table

if TYPE_CHECKING:
    from cachefl_secure.federation.coordinator_files import Candidate, CoordinatorFiles
    from cachefl_secure.federation.roster_change import RosterChange


@explained
def command(
    directory: Coordinator,
    requests: Annotated[
        list[Path] | None,
        typer.Argument(
            help="The silos' join-request.toml files. Default: all that wait at the engine.",
            show_default=False,
        ),
    ] = None,
    silo: Annotated[
        list[str] | None,
        typer.Option(
            "--silo", help="Of those that wait, only this one; repeat for each.", show_default=False
        ),
    ] = None,
    site: Annotated[
        list[Path] | None,
        typer.Option(
            "--site",
            help="With FLARE: a member's site-request.json, to be given a certificate; those that lie beside the "
            "join requests are found by themselves.",
            show_default=False,
        ),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            "--remove", help="A silo to take out of the roster; repeat for each.", show_default=False
        ),
    ] = None,
    approval: Annotated[
        list[Path] | None,
        typer.Option(
            "--approval",
            help="What a silo's `confirm` wrote, if it came as a file and not by itself in a round.",
            show_default=False,
        ),
    ] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            "--expect",
            help="A fingerprint as a silo read it out, digits or words; repeat for each. Refuses requests with others.",
            show_default=False,
        ),
    ] = None,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Give up the change that waits for approvals.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="The fingerprints were compared with every silo; do not ask.")
    ] = False,
    json: Json = False,
) -> None:
    """Admit silos: show their fingerprints, ask, and sign the roster.

    Compare each fingerprint with what the silo's operator reads to you. A silo that slips in under
    another's name could take part in the sum.

    The first time this makes the roster. From then on it proposes a change: it adds the silos whose requests
    are given, takes out those named with --remove, and gives a silo the new key that its `rotate` asked for.
    A change needs the silos: each looks at it with `cachefl-secure confirm`, and when a quorum of the present
    ones has approved it, the next round begins with the new roster. A name or a key that left never returns.

    Without files, the requests that silos left at the federation's engine are shown and asked about; with --remove
    only those named by --silo.

    Example: cachefl-secure admit coordinator --silo clinic-4 --remove clinic-2
    """
    from cachefl_secure.crypto.spoken import in_words
    from cachefl_secure.federation.coordinator_files import CoordinatorFiles
    from cachefl_secure.transport.engines import approve_sites, site_requests_beside

    if json and not yes:
        say("--json needs --yes: a program cannot compare fingerprints")
        raise typer.Exit(2)
    files = CoordinatorFiles.open(directory)
    with files.state.lock():
        if withdraw:
            _say_change(files, None, json, said="withdrawn" if files.withdraw() else "no change waited")
            return
        if approval:
            _say_change(files, files.add_approvals(approval), json, said="approvals taken")
            return
        given = [path / "join-request.toml" if path.is_dir() else path for path in requests or []]
        if site:
            if given or remove:
                say("certificates first, then the roster: give --site alone")
                raise typer.Exit(2)
            packages = approve_sites(files, site)
            if json:
                print_json("admit", {"packages": [str(path) for path in packages]})
            _say_packages(packages, json)
            return
        if given and silo:
            say("--silo chooses among those that wait at the engine; leave it out with files")
            raise typer.Exit(2)
        # With --remove alone nobody is taken in by the way.
        waiting = [] if given or (remove and not silo) else _waiting(files, silo)
        candidates = files.candidates(given or waiting)
        _check_expected(candidates, expect)
        if waiting and yes and not expect:
            say(
                "what waits at the engine may change before you look: with --yes give each fingerprint by --expect"
            )
            raise typer.Exit(2)
        if not candidates and not remove:
            what = "nobody waits to be admitted" if files.engine else "nothing to do"
            say(f"{what}: give join requests, --remove, --approval or --withdraw")
            raise typer.Exit(2)
        rows = [(str(c.member.silo), c.fingerprint) for c in candidates]
        if not json and candidates:
            spoken = [(name, f"{mark}\n{in_words(mark)}") for name, mark in rows]
            console().print(
                table("asking to be admitted", ("silo", "fingerprint, and the same in words"), spoken)
            )
            for leaving in remove or []:
                console().print(f"to be removed: {leaving}")
        if not yes:
            typer.confirm("Did every silo read out exactly its fingerprint above?", abort=True)
        if files.has_roster:
            change = files.propose(candidates, remove or [])
            packages = approve_sites(files, site_requests_beside(files, given))
            _say_change(files, change, json, said="proposed", packages=packages)
            _say_packages(packages, json)
            return
        if remove:
            say("nobody can be removed before the first roster")
            raise typer.Exit(2)
        admitted = files.admit(candidates)
        packages = approve_sites(files, site_requests_beside(files, given))
    from cachefl_secure.protocol.parameters import RoundParameters, explain

    parameters = RoundParameters.derive(files.plan, admitted, admitted)
    chosen = files.plan.secure_sum
    explained = explain(admitted, chosen.colluders, chosen.minimum_survivors, chosen.dropout_percent)
    if json:
        members = [{"silo": silo, "fingerprint": mark} for silo, mark in rows]
        result = {"members": members, "threshold": parameters.threshold, "explained": explained}
        print_json("admit", result | {"packages": [str(path) for path in packages]})
        return
    console().print(
        f"{counted(admitted, 'silo')} admitted. A round needs {parameters.minimum_survivors} of them; "
        f"{parameters.colluders} may collude with the coordinator without seeing more than the sum."
    )
    console().print(f"{explained}.")
    _say_packages(packages, json)


def _check_expected(candidates: Sequence[Candidate], expect: list[str] | None) -> None:
    from cachefl_secure.crypto.spoken import digits_of
    from cachefl_secure.errors import ConfigError

    if expect is None:
        return
    heard = {digits_of(each) for each in expect}
    for candidate in candidates:
        if candidate.fingerprint.replace(" ", "") not in heard:
            reason = f"{candidate.fingerprint} is not among the fingerprints expected: do not admit it, call that silo"
            raise ConfigError("--expect", str(candidate.member.silo), reason)


def _say_packages(packages: list[Path], json: bool) -> None:
    """With FLARE each silo needs its certificate; people carry it back."""
    if json:
        return
    for path in packages:
        console().print(f"send {path} to {path.stem}, whose operator puts it there as site-package.json")


def _waiting(files: CoordinatorFiles, chosen: list[str] | None) -> list[Path]:
    """The requests at the engine, or those of the silos named."""
    if not files.engine:
        return []
    from cachefl_secure.errors import ConfigError
    from cachefl_secure.transport.engines import waiting_requests

    found = waiting_requests(files, say, files.state.path("requests"))
    for name in chosen or []:
        if name not in found:
            raise ConfigError("--silo", name, "does not wait to be admitted")
    return [path for name, path in sorted(found.items()) if chosen is None or name in chosen]


def _say_change(
    files: CoordinatorFiles,
    change: RosterChange | None,
    json: bool,
    *,
    said: str,
    packages: Sequence[Path] = (),
) -> None:
    """The change that waits now, if one does, and what has to happen next."""
    from cachefl_secure.crypto.spoken import in_words
    from cachefl_secure.federation.confirming import Shown
    from cachefl_secure.federation.roster_files import CHANGE_FILE

    shown = None if change is None else Shown.of(change, files.rosters())
    proposal, approvals = files.state.path(CHANGE_FILE), [] if change is None else change.approvals
    if json:
        result: dict[str, Any] = {"said": said, "epoch": None, "packages": [str(path) for path in packages]}
        if shown is not None:
            result |= {
                "epoch": shown.epoch,
                "change": [list(row) for row in shown.rows()],
                "fingerprint": shown.spoken,
                "approvals": [str(each.silo) for each in approvals],
                "quorum": shown.quorum,
                "proposal": str(proposal),
            }
        print_json("admit", result)
        return
    if shown is None:
        console().print(f"{said}.")
        return
    title = f"change to epoch {shown.epoch}: {shown.spoken}\n{in_words(shown.spoken)}"
    console().print(table(title, ("", "silo", "fingerprint"), shown.rows()))
    console().print(
        f"{said}: {len(approvals)} of {shown.quorum} approvals. The next `round` brings it to the silos (`round -n 0` "
        f"does nothing else), or hand them {proposal}; each runs `cachefl-secure confirm`, and compares the fingerprint above with the other silos."
    )

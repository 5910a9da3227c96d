"""join: take part with one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachefl_secure_cli.failures import explained, say
from cachefl_secure_cli.options import Clip, Device, DeviceOption, resolve_device
from cachefl_secure_cli.output import Json, console, print_json, progress_bar, table

if TYPE_CHECKING:
    from cachefl_secure.federation.joining import Joined


@explained
def command(
    invite: Annotated[Path, typer.Argument(help="The invite.toml from the coordinator.", show_default=False)],
    directory: Annotated[Path, typer.Argument(help="A new directory for this silo.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Private images: one folder a class.", show_default=False)],
    name: Annotated[str, typer.Option(help="This silo's name: a-z, 0-9 and '-'.", show_default=False)],
    clip: Clip = None,
    expect: Annotated[
        str | None, typer.Option(help="The coordinator's fingerprint as you heard it; refuses any other.")
    ] = None,
    epsilon_cap: Annotated[
        float | None, typer.Option(help="Refuse rounds beyond this local epsilon. Default: the plan's.")
    ] = None,
    epsilon_cap_aggregate: Annotated[
        float | None,
        typer.Option(help="Refuse rounds beyond this aggregate epsilon. Default: the plan's."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="A silo's directory of this institution over the same records: share its ledger, key and caps.",
            show_default=False,
        ),
    ] = None,
    not_private: Annotated[
        bool,
        typer.Option("--not-private", help="Join although the plan adds no noise: updates reveal records."),
    ] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, and list them.")
    ] = False,
    device: DeviceOption = Device.auto,
    json: Json = False,
) -> None:
    """Join a federation: encode the private images once, make keys, write a join request.

    Nothing is sent. Hand join-request.toml to the coordinator and read out this silo's fingerprint.

    Example: cachefl-secure join invite.toml my-clinic --data /data/xrays --name my-clinic
    """
    from cachefl_secure.federation.clip_source import ClipSource
    from cachefl_secure.federation.enrolment import read_invite
    from cachefl_secure.federation.joining import JoinChoices, join_federation

    plan = read_invite(invite, expect=expect)
    choices = JoinChoices(
        name=name,
        images=data,
        clip=ClipSource.of_plan(plan.encoder, clip),
        expect=expect,
        epsilon_cap=epsilon_cap,
        epsilon_cap_aggregate=epsilon_cap_aggregate,
        ledger=ledger,
        not_private=not_private,
        skip_unreadable=skip_unreadable,
        device=resolve_device(device),
    )
    with progress_bar(quiet=json) as progress:
        joined = join_federation(invite, directory, choices, progress)
    if json:
        print_json(
            "join",
            {
                "silo": joined.silo,
                "records": joined.records,
                "classes_present": joined.classes_present,
                "skipped": list(joined.skipped),
                "epsilon_caps": {"local": joined.caps.local, "aggregate": joined.caps.aggregate},
                "has_other_records": joined.has_other_records,
                "delta": joined.plan.privacy.delta,
                "rounds_planned": joined.plan.privacy.rounds,
                "fingerprint": joined.fingerprint,
                "coordinator_fingerprint": joined.coordinator_fingerprint,
                "request": str(joined.request),
            },
        )
        return
    rows = [
        ("records (stay here)", f"{joined.records} of {joined.classes_present} classes"),
        ("this silo refuses beyond", _promise(joined)),
        ("this silo's fingerprint", joined.fingerprint),
        ("coordinator's fingerprint", joined.coordinator_fingerprint),
        ("join request", str(joined.request)),
    ]
    console().print(table(f"silo {joined.silo}", ("", ""), rows))
    if joined.skipped:
        say(f"{len(joined.skipped)} unreadable images left out: {', '.join(joined.skipped)}")
    if joined.has_other_records:
        say("the shared ledger names other records; their costs are added up as if they were the same")
    if expect is None:
        say("compare the coordinator's fingerprint by phone; `--expect` does it for you")


def _promise(joined: Joined) -> str:
    privacy = joined.plan.privacy
    if privacy.mechanism == "none":
        return "nothing: this plan is NOT PRIVATE"
    caps = f"local epsilon {joined.caps.local:g} or aggregate epsilon {joined.caps.aggregate:g}"
    return f"{caps} at delta {privacy.delta!r} ({privacy.rounds} rounds planned)"

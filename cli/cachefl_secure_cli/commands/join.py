"""join: take part with one's own images."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachefl_secure.wording import counted
from cachefl_secure_cli import panels
from cachefl_secure_cli.failures import explained, say
from cachefl_secure_cli.options import (
    SOURCES,
    Clip,
    Device,
    DeviceOption,
    Precision,
    PrecisionOption,
    SkipUnreadable,
    resolve_device,
    tell_skipped,
)
from cachefl_secure_cli.output import Json, console, print_json, progress_bar, table
from cachefl_secure_cli.stopping import stopped_by_signals

if TYPE_CHECKING:
    from cachefl_secure.federation.budget import Room
    from cachefl_secure.federation.joining import Joined
    from cachefl_secure.federation.silo_files import SiloFiles
    from cachefl_secure.plan import FederationPlan


@explained
def command(
    invite: Annotated[Path, typer.Argument(help="The invite.toml from the coordinator.", show_default=False)],
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="This silo's directory; made the first time. Default: named as the silo.", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help=f"Private images; needed the first time. {SOURCES}.",
            show_default=False,
            rich_help_panel=panels.RECORDS,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="This silo's name: a-z, 0-9 and '-'; needed the first time.", show_default=False),
    ] = None,
    clip: Clip = None,
    expect: Annotated[
        str | None, typer.Option(help="The coordinator's fingerprint as you heard it; refuses any other.")
    ] = None,
    epsilon_cap: Annotated[
        float | None,
        typer.Option(
            help="Refuse rounds beyond this local epsilon. Default: the plan's.",
            rich_help_panel=panels.PRIVACY,
        ),
    ] = None,
    epsilon_cap_aggregate: Annotated[
        float | None,
        typer.Option(
            help="Refuse rounds beyond this aggregate epsilon. Default: the plan's.",
            rich_help_panel=panels.PRIVACY,
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="A silo's directory of this institution over the same records: share its ledger, key and caps.",
            show_default=False,
            rich_help_panel=panels.PRIVACY,
        ),
    ] = None,
    not_private: Annotated[
        bool,
        typer.Option(
            "--not-private",
            help="Join although the plan adds no noise: updates reveal records.",
            rich_help_panel=panels.PRIVACY,
        ),
    ] = False,
    skip_unreadable: SkipUnreadable = False,
    views: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            help="Encode each image in so many augmented views; rounds take turns over them.",
            rich_help_panel=panels.RECORDS,
        ),
    ] = 1,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    engine: Annotated[
        str | None,
        typer.Option(
            help="This machine's own path to the engine of the invite, such as dir:///mnt/other/federation.",
            show_default=False,
            rich_help_panel=panels.MESSAGES,
        ),
    ] = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Take part in one round, then end.", rich_help_panel=panels.MESSAGES),
    ] = False,
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait",
            help="Only ask to be admitted; serve later, by the same command.",
            rich_help_panel=panels.MESSAGES,
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Join a federation and take part: encode the private images once, make keys, ask to be admitted, serve.

    Images and features stay here, and nothing is downloaded. A killed join goes on where its encoding was. If the invite names an engine, this leaves the request there and then waits:
    for the coordinator's `admit`, and for rounds. End it with Ctrl-C and start it again by the same command, as
    often as you like; a killed one goes on where it was. Without an engine, hand join-request.toml to the
    coordinator. Either way read this silo's fingerprint to the coordinator.

    Example: cachefl-secure join invite.toml --data /data/xrays --name my-clinic --expect "1f2e ..."
    """
    from cachefl_secure.federation.enrolment import read_invite
    from cachefl_secure.federation.silo_files import SiloFiles
    from cachefl_secure.federation.state_dir import StateDir

    _refuse_directory(invite)
    root = directory if directory is not None else None if name is None else Path(name)
    if root is None:
        say("give this silo's --name the first time, its directory later")
        raise typer.Exit(2)
    if (root / "silo.toml").is_file() and StateDir(root).is_finished:
        _check_same(SiloFiles.open(root), read_invite(invite, expect=expect), name)
        say(f"{root} has joined already; its records are those it read then")
        if data is not None:
            _check_same_data(SiloFiles.open(root), data)
            say(
                f"--data {data} is not read again: for other records join in a new directory, with --ledger {root}"
            )
        _ask_again(root, engine)
        if json:
            print_json("join", {"silo": SiloFiles.open(root).silo, "joined": "before"})
    else:
        if data is None or name is None:
            say(f"{root} has not joined yet: give --data and --name")
            raise typer.Exit(2)
        choices = _Choices(
            clip,
            expect,
            epsilon_cap,
            epsilon_cap_aggregate,
            ledger,
            not_private,
            skip_unreadable,
            views,
            device,
            precision,
            engine,
        )
        _join(invite, root, data, name, choices, json=json)
    if no_wait or json or not SiloFiles.open(root).config.engine:
        return
    serve(root, once=once)


def _refuse_directory(invite: Path) -> None:
    """What else is likely to be given where the invite's file is expected.

    Raises:
        ConfigError: a directory; says which file was meant.
    """
    from cachefl_secure.errors import ConfigError
    from cachefl_secure.federation.silo_files import CONFIG_FILE, INVITE_FILE

    if not invite.is_dir():
        return
    meant = invite / INVITE_FILE
    if (invite / CONFIG_FILE).is_file():
        reason = f"is a silo's directory; the invite's file comes before it: join {meant} {invite}"
    elif meant.is_file():
        reason = f"is a directory; did you mean {meant}?"
    else:
        reason = f"is a directory; give the file {INVITE_FILE} that the coordinator's init wrote"
    raise ConfigError(str(invite), "", reason)


def serve(root: Path, *, once: bool) -> None:
    """Answers the coordinator until somebody stops it."""
    from cachefl_secure.transport.engines import serve_at

    with stopped_by_signals() as stop:
        say("waiting for the coordinator; Ctrl-C ends, nothing is lost by it")
        serve_at(
            root, stop=stop, tell=lambda sentence: say(f"{datetime.now():%H:%M:%S} {sentence}"), once=once
        )
    say("ended")


def _check_same(files: SiloFiles, plan: FederationPlan, name: str | None) -> None:
    from cachefl_secure.errors import ConfigError
    from cachefl_secure.plan import plan_digest

    if plan_digest(plan) != plan_digest(files.plan):
        raise ConfigError(str(files.state.root), "", "has joined another federation; give a new directory")
    if name is not None and name != files.silo:
        raise ConfigError("--name", name, f"{files.state.root} has joined as {files.silo}")


def _check_same_data(files: SiloFiles, data: Path) -> None:
    """Whoever names other records would take it that they are used.

    Raises:
        ConfigError: another path than the one that was read.
    """
    from cachefl_secure.errors import ConfigError

    read = files.config.data
    if read and str(data.resolve()) != read:
        root = files.state.root
        reason = (
            f"{root} has joined with the records of {read}, and reads no others; leave --data out, or join under "
            f"another --name, with --ledger {root}"
        )
        raise ConfigError("--data", str(data), reason)


def _ask_again(root: Path, engine: str | None) -> None:
    """A request that did not arrive the first time is handed over now, by another path if one is given."""
    import msgspec

    from cachefl_secure.federation.silo_files import CONFIG_FILE, REQUEST_FILE, SiloFiles
    from cachefl_secure.federation.state_dir import ROSTER_FILE
    from cachefl_secure.plan import encode_toml
    from cachefl_secure.transport.engines import check_engine, hand_over_request

    files = SiloFiles.open(root)
    if engine is not None and engine != files.config.engine:
        check_engine(engine, plan=files.plan)
        config = msgspec.structs.replace(files.config, engine=engine)
        files.state.write(CONFIG_FILE, encode_toml(config))
        files = SiloFiles.open(root)
    if not files.state.has(ROSTER_FILE):
        hand_over_request(files, root / REQUEST_FILE)


@dataclass(frozen=True, slots=True)
class _Choices:
    clip: str | None
    expect: str | None
    epsilon_cap: float | None
    epsilon_cap_aggregate: float | None
    ledger: Path | None
    not_private: bool
    skip_unreadable: bool
    views: int
    device: Device
    precision: Precision
    engine: str | None


def _join(invite: Path, directory: Path, data: Path, name: str, chosen: _Choices, *, json: bool) -> None:
    from cachefl_secure.cache.sources import is_feature_file
    from cachefl_secure.crypto.spoken import in_words
    from cachefl_secure.federation.clip_source import ClipSource
    from cachefl_secure.federation.enrolment import open_invite
    from cachefl_secure.federation.joining import JoinChoices, join_federation
    from cachefl_secure.federation.silo_files import SiloFiles
    from cachefl_secure.transport.engines import check_engine, hand_over_request

    asked = open_invite(invite, expect=chosen.expect)
    check_engine(asked.engine if chosen.engine is None else chosen.engine, plan=asked.plan)
    choices = JoinChoices(
        name=name,
        images=data,
        clip=None if is_feature_file(data) else ClipSource.of_plan(asked.plan.encoder, chosen.clip),
        expect=chosen.expect,
        epsilon_cap=chosen.epsilon_cap,
        epsilon_cap_aggregate=chosen.epsilon_cap_aggregate,
        ledger=chosen.ledger,
        not_private=chosen.not_private,
        skip_unreadable=chosen.skip_unreadable,
        views=chosen.views,
        device=resolve_device(chosen.device),
        precision=chosen.precision.value,
        engine=chosen.engine,
    )
    expect = chosen.expect
    say(f"{name}: reading the records of {data}")
    with progress_bar(quiet=json) as progress:
        joined = join_federation(invite, directory, choices, progress)
    carried = hand_over_request(SiloFiles.open(directory), joined.request)
    if json:
        print_json(
            "join",
            {
                "silo": joined.silo,
                "records": joined.records,
                "classes_present": joined.classes_present,
                "skipped": list(joined.skipped),
                "copies": joined.copies,
                "epsilon_caps": {"local": joined.caps.local, "aggregate": joined.caps.aggregate},
                "has_other_records": joined.has_other_records,
                "delta": joined.plan.privacy.delta,
                "rounds_planned": joined.plan.privacy.rounds,
                "rounds_within_caps": None if joined.room is None else joined.room.fitting,
                "fingerprint": joined.fingerprint,
                "coordinator_fingerprint": joined.coordinator_fingerprint,
                "request": str(joined.request),
                "carried": [str(path) for path in carried],
            },
        )
        return
    rows = [
        (
            "records (stay here)",
            f"{joined.records:,} of {counted(joined.classes_present, 'class', 'classes')}",
        ),
        ("this silo refuses beyond", _promise(joined)),
        ("this silo's fingerprint", joined.fingerprint),
        ("the same in words", in_words(joined.fingerprint)),
        ("coordinator's fingerprint", joined.coordinator_fingerprint),
        ("the same in words", in_words(joined.coordinator_fingerprint)),
        *([("join request", str(joined.request))] if carried else []),
    ]
    console().print(table(f"silo {joined.silo}", ("", ""), rows))
    if len(carried) > 1:
        say(f"hand over {' and '.join(str(path) for path in carried)}")
    tell_skipped(joined.skipped)
    if joined.copies:
        say(
            f"{counted(joined.copies, 'record')} {'is a copy' if joined.copies == 1 else 'are copies'} of others: each copy weakens what is promised for its picture (N7)"
        )
    if joined.has_other_records:
        say("the shared ledger names other records; their costs are added up as if they were the same")
    if joined.room is not None and joined.room.too_low:
        say(_too_little_room(joined.room))
    if expect is None:
        say("compare the coordinator's fingerprint by phone; `--expect` does it for you")


def _too_little_room(room: Room) -> str:
    """Which caps of a shared ledger have to be raised, where, and to what."""
    from cachefl_secure.privacy.statements import rounded_up

    raised = ", ".join(f"{cap.field} in {cap.file} to {rounded_up(cap.needed)}" for cap in room.too_low)
    fitting = "none" if room.fitting == 0 else str(room.fitting)
    return (
        f"{fitting} of {counted(room.planned, 'planned round')} {'fit' if room.fitting > 1 else 'fits'} into the "
        f"caps of the shared ledger; for all of them raise {raised}"
    )


def _promise(joined: Joined) -> str:
    privacy = joined.plan.privacy
    if privacy.mechanism == "none":
        return "nothing: this plan is NOT PRIVATE"
    caps = f"local epsilon {joined.caps.local:g} or aggregate epsilon {joined.caps.aggregate:g}"
    planned = counted(privacy.rounds, "round")
    return f"{caps} at delta {privacy.delta!r} ({planned} planned)"

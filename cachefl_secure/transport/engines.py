"""What carries the messages of a federation, by the URL in its invite.

    (none)                                  all parties on one machine: ``round --in-process``
    dir:///shared/fed  s3://  gs://  ...    a mailbox on a shared folder or object store: ``mailbox``
    nvflare+grpc://host:port  +http  +tcp   NVIDIA FLARE, for live rounds: ``flare``, an extra

No engine is trusted with more than that messages arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.ports import Progress
from cachefl_secure.federation.silo_files import REQUEST_FILE, SiloFiles
from cachefl_secure.federation.state_dir import ROSTER_FILE
from cachefl_secure.names import SiloId
from cachefl_secure.transport.contacts import check_place
from cachefl_secure.transport.flare.engine import parse_engine, require_nvflare
from cachefl_secure.transport.flare.enrolling import (
    approve_site,
    found_engine,
    has_site,
    install_site,
    request_site,
    requesting_silo,
)
from cachefl_secure.transport.store import ObjectStore, check_url

if TYPE_CHECKING:  # what rounds need is imported where they are run: torch takes seconds
    from cachefl_secure.federation.coordinator_round import RoundOutcome
    from cachefl_secure.plan import FederationPlan
    from cachefl_secure.transport.coordinating import Rounds, Tell

SITE_REQUEST, SITE_PACKAGE = "site-request.json", "site-package.json"
"""With FLARE, what people carry: a silo's request for a certificate, and the coordinator's answer."""

_LOOK_SECONDS = 0.5


def check_engine(url: str, *, founding: bool = False, plan: FederationPlan | None = None) -> None:
    """That messages can be carried so, before anything is made that names it, or minutes are spent.

    ``founding`` makes a folder that is missing, and tries the place out. Of a ``plan``, it must be the place.

    Raises:
        ConfigError: no engine of this version.
        MissingExtra: it needs packages that are not installed.
        TransportError: the place cannot be made, used or reached, or is not the plan's.
    """
    if _is_flare(url):
        parse_engine(url)
        require_nvflare()
    elif url:
        if check_url(url) == "memory":
            raise ConfigError("--engine", url, "is the memory of one process: no other party reaches it")
        store = ObjectStore.open(url)
        if founding:
            store.make()
            store.try_out()
        if plan is not None:
            check_place(store, plan.id, plan.coordinator_key)


def prepare_coordinator(directory: Path) -> None:
    """What the engine needs at the coordinator, once the federation is founded.

    Raises:
        ConfigError: not written.
        TransportError: the place cannot be reached.
    """
    files = CoordinatorFiles.open(directory)
    if _is_flare(files.engine):
        found_engine(files.state, parse_engine(files.engine), files.plan.name)
    elif files.engine:
        from cachefl_secure.transport.mailbox_enrolment import find_place

        find_place(ObjectStore.open(files.engine, where="invite.toml"), files)


def run_rounds_at(
    directory: Path,
    silo_directories: Sequence[Path],
    rounds: Rounds,
    *,
    progress: Progress,
    tell: Tell,
    finished: Callable[[RoundOutcome], None],
    keep_parcels: bool = False,
) -> list[RoundOutcome]:
    """Rounds at the federation's engine, or in this process with the silos of ``silo_directories`` if there are any.

    Raises:
        ConfigError: a directory is not what it should be, or there is neither an engine nor a silo.
        RoundAborted, CohortExhausted: a round failed; those before it stand.
        TransportError: the engine cannot be reached.
    """
    engine = CoordinatorFiles.open(directory).engine
    if keep_parcels and (silo_directories or not engine or _is_flare(engine)):
        raise ConfigError(
            "--keep-messages", "", "only a mailbox keeps messages, and this federation uses none here"
        )
    if _is_flare(engine) and not silo_directories:
        return _run_flare(directory, rounds, progress=progress, tell=tell, finished=finished)
    if engine and not silo_directories:
        from cachefl_secure.transport.mailbox_federation import run_mailbox_rounds

        return run_mailbox_rounds(
            directory, rounds, progress=progress, tell=tell, finished=finished, keep_parcels=keep_parcels
        )
    from cachefl_secure.transport.local_federation import run_local_rounds

    return run_local_rounds(
        directory,
        silo_directories,
        rounds.number,
        deadline_seconds=rounds.deadline_seconds,
        progress=progress,
        tell=tell,
        until=rounds.until,
        resume=rounds.resume,
        give_up=rounds.give_up,
        finished=finished,
    )


def serve_at(directory: Path, *, stop: Event, tell: Tell, once: bool = False) -> None:
    """A silo answers at its federation's engine until ``stop`` is set; with ``once`` until a round was recorded.

    Its request to be admitted is left there first, unless it is admitted: then it may start before its engine does.

    Raises:
        ConfigError: no silo's directory, one without an engine, or in use.
        TransportError: the engine cannot be reached, and nobody has heard of this silo yet.
        LedgerError: the ledger does not verify or was rolled back.
    """
    files = SiloFiles.open(directory)
    if not files.config.engine:
        reason = "the invite names no engine; hand join-request.toml to the coordinator, who runs this silo's rounds"
        raise ConfigError(str(directory), "engine", reason)
    if _is_flare(files.config.engine):
        _serve_flare(files, stop, tell, once=once)
        return
    from cachefl_secure.transport.mailbox_enrolment import ask_to_join
    from cachefl_secure.transport.mailbox_federation import serve_mailbox

    if not files.state.has(ROSTER_FILE):
        ask_to_join(files, files.state.read(REQUEST_FILE))
    serve_mailbox(directory, stop=stop, tell=tell, once=once)


def waiting_requests(files: CoordinatorFiles, tell: Tell, folder: Path) -> Mapping[SiloId, Path]:
    """Silo -> its request that waits at the engine, copied into ``folder``. The coordinator's card is left there.

    Raises:
        TransportError: the engine cannot be reached, or holds nothing of this federation.
    """
    if not files.engine or _is_flare(files.engine):
        return {}  # requests are carried by people
    from cachefl_secure.transport.mailbox_enrolment import collect_requests

    return collect_requests(files, tell, folder)


def hand_over_request(files: SiloFiles, request: Path) -> list[Path]:
    """Leaves a request of this silo at its engine; returns the files that people have to carry instead, if any.

    Raises:
        TransportError: the engine cannot be reached.
    """
    if not files.config.engine:
        return [request]
    if _is_flare(files.config.engine):
        asked = request_site(files.state, files.silo, parse_engine(files.config.engine))
        files.state.write(SITE_REQUEST, asked)
        return [request, files.state.path(SITE_REQUEST)]
    from cachefl_secure.transport.mailbox_enrolment import ask_to_join

    ask_to_join(files, request.read_bytes())
    return []


def approve_sites(files: CoordinatorFiles, requests: Sequence[Path]) -> list[Path]:
    """Signs the certificates that silos of the roster ask for; the packages to carry back to them.

    Raises:
        ConfigError: a request is unreadable, damaged, or of a silo that is not in the roster.
        BadSignature: a request that its silo did not sign.
    """
    packages = []
    for path in requests:
        raw = path.read_bytes()
        silo = requesting_silo(raw)
        name = f"packages/{silo}.json"
        files.state.write(name, approve_site(files.state, silo, raw))
        packages.append(files.state.path(name))
    return packages


def site_requests_beside(files: CoordinatorFiles, join_requests: Sequence[Path]) -> list[Path]:
    """The site requests that lie in the same folders as these join requests; none unless the engine is FLARE."""
    if not _is_flare(files.engine):
        return []
    beside = (path.parent / SITE_REQUEST for path in join_requests)
    return [path for path in beside if path.is_file()]


def _run_flare(
    directory: Path,
    rounds: Rounds,
    *,
    progress: Progress,
    tell: Tell,
    finished: Callable[[RoundOutcome], None],
) -> list[RoundOutcome]:
    from cachefl_secure.transport.flare.rounds import run_flare_rounds

    return run_flare_rounds(
        directory,
        rounds.number,
        deadline_seconds=rounds.deadline_seconds,
        progress=progress,
        tell=tell,
        until=rounds.until,
        finished=finished,
        give_up=rounds.give_up,
        resume=rounds.resume,
        connect_seconds=rounds.deadline_seconds if rounds.gather_seconds is None else rounds.gather_seconds,
    )


def _serve_flare(files: SiloFiles, stop: Event, tell: Tell, *, once: bool) -> None:
    """Waits for the coordinator's package the first time; then FLARE's client serves."""
    from cachefl_secure.transport.flare.processes import SiteProcess
    from cachefl_secure.transport.serving import recorded_round

    state, engine = files.state, parse_engine(files.config.engine)
    require_nvflare()
    waited = False
    while not has_site(state):
        if state.has(SITE_PACKAGE):
            install_site(state, state.read(SITE_PACKAGE), engine)
            continue
        if not waited:
            tell(f"waiting for the coordinator's package: put it at {state.path(SITE_PACKAGE)}")
            waited = True
        if stop.wait(_LOOK_SECONDS):
            return
    before = recorded_round(state)
    with SiteProcess(state.root, tell=tell):
        while not stop.wait(_LOOK_SECONDS):
            if once and recorded_round(state) > before:
                return


def _is_flare(url: str) -> bool:
    return url.startswith("nvflare")

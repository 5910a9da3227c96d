"""What carries the messages of a federation, by the URL in its invite.

    (none)                                  all parties on one machine: ``round --in-process``
    dir:///shared/fed  s3://  gs://  ...    a mailbox on a shared folder or object store: ``mailbox``

No engine is trusted with more than that messages arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import RoundOutcome
from cachefl_secure.federation.ports import Progress
from cachefl_secure.federation.silo_files import REQUEST_FILE, SiloFiles
from cachefl_secure.federation.state_dir import ROSTER_FILE
from cachefl_secure.names import SiloId
from cachefl_secure.transport.coordinating import Rounds, Tell
from cachefl_secure.transport.store import check_url


def check_engine(url: str, *, founding: bool = False) -> None:
    """That messages can be carried so, before anything is made that names it. ``founding`` makes a folder that is missing.

    Raises:
        ConfigError: no engine of this version.
        MissingExtra: it needs packages that are not installed.
        TransportError: the folder cannot be made.
    """
    if url:
        check_url(url)
        from cachefl_secure.transport.store import ObjectStore

        store = ObjectStore.open(url)
        if founding:
            store.make()


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
    from cachefl_secure.transport.mailbox_federation import ask_to_join, serve_mailbox

    if not files.state.has(ROSTER_FILE):
        ask_to_join(files, files.state.read(REQUEST_FILE))
    serve_mailbox(directory, stop=stop, tell=tell, once=once)


def waiting_requests(files: CoordinatorFiles, tell: Tell) -> Mapping[SiloId, Path]:
    """Silo -> its request that waits at the engine, copied into the coordinator's directory.

    Raises:
        TransportError: the engine cannot be reached.
    """
    from cachefl_secure.transport.mailbox_federation import collect_requests, open_for_enrolment

    open_for_enrolment(files)
    return collect_requests(files, tell)


def hand_over_request(files: SiloFiles, request: bytes) -> bool:
    """Leaves a request of this silo at its engine; False if it has none.

    Raises:
        TransportError: the engine cannot be reached.
    """
    if not files.config.engine:
        return False
    from cachefl_secure.transport.mailbox_federation import ask_to_join

    ask_to_join(files, request)
    return True

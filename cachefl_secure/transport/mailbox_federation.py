"""A federation over a mailbox: each party in its own process, wherever it reaches the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import RoundOutcome
from cachefl_secure.federation.letters import MAX_LETTER_BYTES
from cachefl_secure.federation.ports import Progress
from cachefl_secure.federation.roster_change import RosterHistory
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.synchronising import Attendance
from cachefl_secure.names import COORDINATOR, PublicKeyHex, SiloId, digest_of, parse_silo_id
from cachefl_secure.plan import FederationPlan, plan_digest
from cachefl_secure.transport.coordinating import Rounds, Tell, run_over
from cachefl_secure.transport.mailbox import CoordinatorMailbox, SiloMailbox, announce
from cachefl_secure.transport.parcels import Sender
from cachefl_secure.transport.serving import Watch
from cachefl_secure.transport.store import ObjectStore

MAX_REQUEST_BYTES = 1 << 14
_MAX_REQUESTS = 4096
_WORD_BYTES = 4  # of the widest word that an entry of an update is sent in
_LETTER_BYTES = 1 << 20  # all else in a silo's answer, for the largest roster


def run_mailbox_rounds(
    directory: Path,
    rounds: Rounds,
    *,
    progress: Progress,
    tell: Tell,
    finished: Callable[[RoundOutcome], None],
    keep_parcels: bool = False,
) -> list[RoundOutcome]:
    """Rounds with the silos that serve at the store of this federation.

    Raises:
        ConfigError, RoundAborted, CohortExhausted: as ``coordinating.run_over``.
        TransportError: the store cannot be reached.
    """
    files = CoordinatorFiles.open(directory)
    store = ObjectStore.open(files.engine)
    with files.state.lock():
        chain = files.chain()

        def waiting(phase: str, missing: Sequence[SiloId], seconds: float) -> None:
            tell(f"waiting for {', '.join(missing)} ({phase}, {seconds:.0f} s)")

        channel = CoordinatorMailbox(
            store,
            coordinator_sender(files),
            files.state,
            lambda: identities_of(chain.rosters),
            limit_bytes=_LETTER_BYTES + _WORD_BYTES * files.plan.number_of_parameters,
            waiting=waiting,
            keep_parcels=keep_parcels,
        )
        return run_over(channel, files, chain, rounds, progress, tell, _explain(tell), finished)


def _explain(tell: Tell) -> Callable[[Attendance], None]:
    def explain(attendance: Attendance) -> None:
        for silo in sorted(attendance.absent):
            tell(f"{silo}: no answer")
        for silo, why in sorted((attendance.declined | attendance.rejected).items()):
            tell(f"{silo}: {why}")

    return explain


def serve_mailbox(directory: Path, *, stop: Event, tell: Tell, once: bool = False) -> None:
    """Answers the coordinator until ``stop`` is set; with ``once`` until a round was recorded.

    Raises:
        ConfigError: no silo's directory, or another process works in it.
        LedgerError: the ledger does not verify or was rolled back.
    """
    files = SiloFiles.open(directory)
    store = ObjectStore.open(files.config.engine)
    with files.state.lock(), files.ledger() as ledger:
        if ledger.recovered:
            tell(f"ledger: {ledger.recovered}")
        watch = Watch(SiloService(files, ledger), files, ledger, tell, stop if once else None)
        SiloMailbox(
            store,
            lambda: silo_sender(files),
            files.plan.coordinator_key,
            limit_bytes=MAX_LETTER_BYTES,
            tell=tell,
        ).serve(watch.handle, stop=stop)


def coordinator_sender(files: CoordinatorFiles) -> Sender:
    state = files.state
    return Sender(files.plan.id, COORDINATOR, state.signing_key(), state.transport_key())


def silo_sender(files: SiloFiles) -> Sender:
    return Sender(files.plan.id, files.silo, files.state.signing_key(), files.state.transport_key())


def identities_of(rosters: RosterHistory) -> Mapping[SiloId, Sequence[PublicKeyHex]]:
    """The key of every member, after the one that it had in the roster before.

    A silo that has not heard of the latest roster yet signs with its old key, and one that was removed is told so.
    """
    found: dict[SiloId, list[PublicKeyHex]] = {}
    for roster in rosters.rosters[-2:]:
        for silo, key in roster.public_keys.items():
            if key not in found.setdefault(silo, []):
                found[silo].append(key)
    return found


# --- enrolment


def post_request(store: ObjectStore, plan: FederationPlan, silo: SiloId, request: bytes) -> None:
    """Leaves a join or rotate request where the coordinator looks. It is public, and signed by the silo.

    Raises:
        TransportError: not left.
    """
    digest = digest_of("cachefl-secure/request/1", request)[:16]
    name = f"{_requests(plan)}/{silo}.{digest}.toml"
    if store.get(name, limit_bytes=MAX_REQUEST_BYTES) != request:
        store.put(name, request)


def collect_requests(files: CoordinatorFiles, tell: Tell) -> dict[SiloId, Path]:
    """Requests at the store that the roster does not answer yet, copied into the coordinator's ``requests/``.

    Who asks twice with different keys is left out, and told: one of the two is not who it says.

    Raises:
        TransportError: the store cannot be reached.
    """
    store, folder = ObjectStore.open(files.engine), _requests(files.plan)
    members = chain_keys(files)
    found: dict[SiloId, list[Path]] = {}
    for name in store.names(folder)[:_MAX_REQUESTS]:
        raw = store.get(f"{folder}/{name}", limit_bytes=MAX_REQUEST_BYTES)
        if raw is None:
            continue
        try:
            silo = parse_silo_id(name.partition(".")[0], file=name)
            copy = f"requests/{silo}.{name.rpartition('.toml')[0].rpartition('.')[2][:16]}.toml"
            files.state.write(copy, raw)
            (candidate,) = files.candidates([files.state.path(copy)])
        except ConfigError as error:
            tell(f"a request that is none: {error}")
            continue
        if candidate.member.silo != silo or candidate.member.public_key in members.get(silo, ()):
            continue
        found.setdefault(silo, []).append(files.state.path(copy))
    for silo, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(str(path) for path in paths)
            tell(
                f"{silo} asks {len(paths)} times with different keys; compare fingerprints and give one of {names}"
            )
    return {silo: paths[0] for silo, paths in found.items() if len(paths) == 1}


def chain_keys(files: CoordinatorFiles) -> Mapping[SiloId, Sequence[PublicKeyHex]]:
    """Every key that a silo had or has."""
    if not files.has_roster:
        return {}
    rosters = files.rosters()
    return {silo: rosters.keys_of(silo) for silo in rosters.all_silos()}


def open_for_enrolment(files: CoordinatorFiles) -> None:
    """Leaves the coordinator's contact card, so that silos can answer.

    Raises:
        ConfigError, MissingExtra, TransportError: the store cannot be used.
    """
    announce(ObjectStore.open(files.engine), coordinator_sender(files))


def ask_to_join(files: SiloFiles, request: bytes) -> None:
    """Leaves this silo's request and its contact card.

    Raises:
        ConfigError, MissingExtra, TransportError: the store cannot be used.
    """
    store = ObjectStore.open(files.config.engine)
    post_request(store, files.plan, files.silo, request)
    announce(store, silo_sender(files))


def _requests(plan: FederationPlan) -> str:
    return f"{plan.id}/requests/{plan_digest(plan)[:16]}"

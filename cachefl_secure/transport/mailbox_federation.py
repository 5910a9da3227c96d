"""A federation over a mailbox: each party in its own process, wherever it reaches the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event

from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import RoundOutcome
from cachefl_secure.federation.letters import SYNC, Receipts
from cachefl_secure.federation.ports import Progress
from cachefl_secure.federation.roster_change import RosterHistory
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.synchronising import Attendance
from cachefl_secure.federation.witnesses import receipts_of
from cachefl_secure.names import PublicKeyHex, SiloId
from cachefl_secure.plan import FederationPlan
from cachefl_secure.protocol.messages import roster_digest
from cachefl_secure.transport.coordinating import Rounds, Tell, run_over
from cachefl_secure.transport.mailbox import CoordinatorMailbox, SiloMailbox
from cachefl_secure.transport.mailbox_enrolment import coordinator_sender, find_place, silo_sender
from cachefl_secure.transport.serving import Watch
from cachefl_secure.transport.store import ObjectStore

_WORD_BYTES = 8  # of the widest word that an entry of an update is sent in
_LETTER_BYTES = 1 << 20  # all else in a request or an answer, for the largest roster


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
    store = ObjectStore.open(files.engine, where="invite.toml")
    with files.state.lock():
        chain = files.chain()
        find_place(store, files)

        def waiting(phase: str, missing: Sequence[SiloId], seconds: float) -> None:
            tell(f"waiting for {', '.join(missing)} ({phase}, {seconds:.0f} s)")

        channel = CoordinatorMailbox(
            store,
            coordinator_sender(files),
            files.state,
            lambda: identities_of(chain.rosters, receipts_of(files)),
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
        if attendance.absent and "roster-not-countersigned" in attendance.declined.values():
            tell(
                f"a roster begins when all its silos have signed it: {', '.join(sorted(attendance.absent))} must be started"
            )

    return explain


def serve_mailbox(directory: Path, *, stop: Event, tell: Tell, once: bool = False) -> None:
    """Answers the coordinator until ``stop`` is set; with ``once`` until a round was recorded.

    Raises:
        ConfigError: no silo's directory, or another process works in it.
        LedgerError: the ledger does not verify or was rolled back.
    """
    files = SiloFiles.open(directory)
    store = ObjectStore.open(files.config.engine, where="silo.toml")
    with files.state.lock(), files.ledger() as ledger:
        if ledger.recovered:
            tell(f"ledger: {ledger.recovered}")
        watch = Watch(SiloService(files, ledger), files, ledger, tell, stop if once else None)
        SiloMailbox(
            store,
            lambda: silo_sender(files),
            files.plan.coordinator_key,
            limit_bytes=_LETTER_BYTES,
            limit_of=lambda phase: _sync_limit_bytes(files.plan) if phase == SYNC else _LETTER_BYTES,
            tell=tell,
        ).serve(watch.handle, stop=stop)


def identities_of(
    rosters: RosterHistory, receipts: Receipts | None = None
) -> Mapping[SiloId, Sequence[PublicKeyHex]]:
    """The key of every member, after the one that it had in the roster before while that may still be in use.

    A silo that has not heard of the latest roster yet signs with its old key, until it has signed a receipt under
    that roster. One that was removed is told so.
    """
    found: dict[SiloId, list[PublicKeyHex]] = {}
    present = roster_digest(rosters.current)
    for roster in rosters.rosters[-2:]:
        for silo, key in roster.public_keys.items():
            kept = (receipts or {}).get(silo, ())
            if roster is rosters.current and kept and kept[-1].roster_digest == present:
                found[silo] = []
            if key not in found.setdefault(silo, []):
                found[silo].append(key)
    return found


def _sync_limit_bytes(plan: FederationPlan) -> int:
    """The first cache and a sum of whole words for twice the rounds that are planned, with room for their records."""
    cache = 4 * plan.number_of_keys * plan.encoder.feature_dim
    return cache + (2 * plan.privacy.rounds + 2) * _WORD_BYTES * plan.number_of_parameters + (1 << 24)

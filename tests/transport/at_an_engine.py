"""A small federation at a mailbox: silos serve in threads of this process, rounds run here or elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from cachefl_secure.federation.coordinator_files import INVITE_FILE, CoordinatorFiles
from cachefl_secure.federation.enrolment import write_invite
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.silo_files import CONFIG_FILE, SiloFiles
from cachefl_secure.plan import encode_toml
from cachefl_secure.transport.coordinating import Rounds
from cachefl_secure.transport.engines import prepare_coordinator, run_rounds_at, serve_at
from tests.small_federation import SmallFederation


def name_engine(federation: SmallFederation, url: str) -> None:
    """As if the invite had named it."""
    files = CoordinatorFiles.open(federation.coordinator)
    files.state.write(INVITE_FILE, write_invite(files.plan, files.state.signing_key(), engine=url))
    prepare_coordinator(federation.coordinator)
    for directory in federation.silos.values():
        silo = SiloFiles.open(directory)
        silo.state.write(CONFIG_FILE, encode_toml(msgspec.structs.replace(silo.config, engine=url)))


@contextmanager
def serving(federation: SmallFederation, said: list[str] | None = None) -> Iterator[None]:
    """Every silo answers at the engine. What stops one of them is raised at the end."""
    stop, failures, told = threading.Event(), list[BaseException](), said if said is not None else []

    def serve(directory: object) -> None:
        try:
            serve_at(directory, stop=stop, tell=told.append)  # type: ignore[arg-type]
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=serve, args=(path,)) for path in federation.silos.values()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def run_rounds(federation: SmallFederation, number: int = 1, *, keep_parcels: bool = False) -> list[str]:
    """The coordinator's rounds at the engine, here; returns what it told its operator."""
    said: list[str] = []
    run_rounds_at(
        federation.coordinator,
        [],
        Rounds(number=number, deadline_seconds=120.0, gather_seconds=60.0),
        progress=silent,
        tell=said.append,
        finished=lambda outcome: None,
        keep_parcels=keep_parcels,
    )
    return said

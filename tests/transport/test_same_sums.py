"""What carries the messages decides about nothing: the same updates give the same sum, bit for bit, on every transport."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.coordinator_files import INVITE_FILE, CoordinatorFiles
from cachefl_secure.federation.enrolment import write_invite
from cachefl_secure.federation.ports import CoordinatorChannel, silent
from cachefl_secure.federation.silo_attempt import Trainer
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.names import SiloId
from cachefl_secure.transport.coordinating import Rounds, run_over
from cachefl_secure.transport.in_process import InProcessNetwork
from cachefl_secure.transport.mailbox import CoordinatorMailbox, SiloMailbox
from cachefl_secure.transport.mailbox_enrolment import coordinator_sender, silo_sender
from cachefl_secure.transport.mailbox_federation import identities_of
from cachefl_secure.transport.store import ObjectStore
from cachefl_secure.updates import IntegerUpdate
from tests.small_federation import SmallFederation, found, small_privacy

ROUNDS = 2


def fixed_updates(silo: SiloId) -> Trainer:
    """The same integers at every run, another vector for every silo: what a generator with a seed stands for."""
    generator = np.random.default_rng(int(silo.rpartition("-")[2]))

    def train(*_: object) -> IntegerUpdate:
        return IntegerUpdate(generator.integers(-1000, 1000, 128).astype(np.int32))

    return Trainer(lambda *_: None, train)


Carrying = Callable[
    [CoordinatorFiles, dict[SiloId, SiloService], dict[SiloId, SiloFiles], Path],
    contextlib.AbstractContextManager[CoordinatorChannel],
]


@contextlib.contextmanager
def in_process(
    _: CoordinatorFiles, services: dict[SiloId, SiloService], __: dict[SiloId, SiloFiles], ___: Path
) -> Iterator[CoordinatorChannel]:
    with InProcessNetwork({silo: service.handle for silo, service in services.items()}) as network:
        yield network


def by_mailbox(scheme: str) -> Carrying:
    @contextlib.contextmanager
    def carrying(
        files: CoordinatorFiles,
        services: dict[SiloId, SiloService],
        silos: dict[SiloId, SiloFiles],
        root: Path,
    ) -> Iterator[CoordinatorChannel]:
        store, stop = ObjectStore.open(f"{scheme}://{root}/store"), threading.Event()
        store.make()
        threads = []
        for silo, service in services.items():
            mailbox = SiloMailbox(
                store,
                lambda own=silos[silo]: silo_sender(own),  # type: ignore[misc]
                files.plan.coordinator_key,
                limit_bytes=1 << 20,
            )
            serve = threading.Thread(target=mailbox.serve, args=(service.handle,), kwargs={"stop": stop})
            serve.start()
            threads.append(serve)
        try:
            rosters = files.rosters()
            yield CoordinatorMailbox(
                store,
                coordinator_sender(files),
                files.state,
                lambda: identities_of(rosters),
                limit_bytes=1 << 20,
            )
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    return carrying


def digests(federation: SmallFederation, carrying: Carrying, root: Path) -> list[tuple[str, str]]:
    """(sum, cache) after every round."""
    files = CoordinatorFiles.open(federation.coordinator)
    with contextlib.ExitStack() as held:
        silos = {silo: SiloFiles.open(path) for silo, path in federation.silos.items()}
        services = {
            silo: SiloService(each, held.enter_context(each.ledger()), fixed_updates(silo))
            for silo, each in silos.items()
        }
        channel = held.enter_context(carrying(files, services, silos, root))
        outcomes = run_over(
            channel,
            files,
            files.chain(),
            Rounds(number=ROUNDS, deadline_seconds=120.0),
            silent,
            lambda _: None,
            lambda _: None,
            lambda _: None,
        )
    assert all(outcome.record.survivors == tuple(sorted(federation.silos)) for outcome in outcomes)
    return [(outcome.record.aggregate_digest, outcome.record.cache_after) for outcome in outcomes]


@pytest.mark.claim("C6")
def test_the_same_updates_give_the_same_sums_on_every_transport(tmp_path: Path) -> None:
    privacy = small_privacy(PrivacyChoices(mechanism="distributed", rounds=4, expected_records=15))
    made = found(tmp_path / "made", privacy=privacy)
    found_sums = []
    for name, carrying in (
        ("in-process", in_process),
        ("folder", by_mailbox("dir")),
        ("memory", by_mailbox("memory")),
    ):
        root = tmp_path / name
        shutil.copytree(made.coordinator.parent, root)
        copied = SmallFederation(
            root / made.coordinator.name, {silo: root / path.name for silo, path in made.silos.items()}
        )
        found_sums.append(digests(copied, carrying, root))
    assert found_sums[0] == found_sums[1] == found_sums[2]
    assert len(set(found_sums[0])) == ROUNDS


def test_an_engine_in_the_invite_is_signed(tmp_path: Path) -> None:
    made = found(tmp_path)
    files = CoordinatorFiles.open(made.coordinator)
    assert files.engine == ""
    files.state.write(INVITE_FILE, write_invite(files.plan, files.state.signing_key(), engine="dir:///a/b"))
    assert CoordinatorFiles.open(made.coordinator).engine == "dir:///a/b"
    text = files.state.read(INVITE_FILE).decode().replace("dir:///a/b", "dir:///a/c")
    files.state.write(INVITE_FILE, text.encode())
    with pytest.raises(ConfigError, match="the invite was changed"):
        CoordinatorFiles.open(made.coordinator)

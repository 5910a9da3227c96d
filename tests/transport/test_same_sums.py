"""What carries the messages decides about nothing: the same updates give the same sum, bit for bit, on every transport."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.coordinator_files import INVITE_FILE, CoordinatorFiles
from cachefl_secure.federation.enrolment import write_invite
from cachefl_secure.federation.ports import CoordinatorChannel, silent
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import SiloId
from cachefl_secure.transport.coordinating import Rounds, run_over
from cachefl_secure.transport.engines import SITE_PACKAGE
from cachefl_secure.transport.flare.enrolling import install_site
from cachefl_secure.transport.flare.processes import SiteProcess
from cachefl_secure.transport.flare.rounds import run_flare_rounds
from cachefl_secure.transport.in_process import InProcessNetwork
from cachefl_secure.transport.mailbox import CoordinatorMailbox, SiloMailbox
from cachefl_secure.transport.mailbox_enrolment import coordinator_sender, silo_sender
from cachefl_secure.transport.mailbox_federation import identities_of
from cachefl_secure.transport.store import ObjectStore
from tests import inside_flare
from tests.party import Paths, fixed_updates
from tests.small_federation import SmallFederation, found, small_privacy
from tests.transport.at_an_engine import name_engine
from tests.transport.at_flare import PATIENCE_SECONDS, free_port, hand_over, needs_flare

ROUNDS = 2


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


def copy_of(made: SmallFederation, root: Path) -> SmallFederation:
    shutil.copytree(made.coordinator.parent, root)
    return SmallFederation(
        root / made.coordinator.name, {silo: root / path.name for silo, path in made.silos.items()}
    )


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
        found_sums.append(digests(copy_of(made, root), carrying, root))
    assert found_sums[0] == found_sums[1] == found_sums[2]
    assert len(set(found_sums[0])) == ROUNDS


@needs_flare
@pytest.mark.slow
@pytest.mark.claim("C6")
def test_the_same_updates_give_the_same_sums_through_flares_own_processes(tmp_path: Path) -> None:
    """Whose silos are made to train the same by this machine's Python (``inside_flare``), not by the package."""
    privacy = small_privacy(PrivacyChoices(mechanism="distributed", rounds=4, expected_records=15))
    made = found(tmp_path / "made", privacy=privacy)
    copied = copy_of(made, tmp_path / "flare")
    hooks = inside_flare.hook(tmp_path / "hooks", tmp_path, "fixed")
    name_engine(copied, f"nvflare+grpc://localhost:{free_port()}")
    hand_over(copied)
    with pytest.MonkeyPatch.context() as environment, contextlib.ExitStack() as held:
        environment.setenv("PYTHONPATH", Paths(tmp_path, hooks).python_path)
        for path in copied.silos.values():
            install_site(StateDir(path), (path / SITE_PACKAGE).read_bytes())
            held.enter_context(SiteProcess(path, tell=lambda _: None))
        outcomes = run_flare_rounds(
            copied.coordinator,
            ROUNDS,
            deadline_seconds=120.0,
            progress=silent,
            tell=lambda _: None,
            connect_seconds=PATIENCE_SECONDS,
        )
    assert all(outcome.record.survivors == tuple(sorted(copied.silos)) for outcome in outcomes)
    through_flare = [(outcome.record.aggregate_digest, outcome.record.cache_after) for outcome in outcomes]
    assert through_flare == digests(made, in_process, tmp_path)


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

"""Both ends of a mailbox with bare handlers: large messages, and what others or a crash leave in the store."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from cachefl_secure.crypto.hpke import TransportKey
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import TransportError
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import COORDINATOR, FederationId, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.transport import parcels
from cachefl_secure.transport.contacts import announce
from cachefl_secure.transport.mailbox import CoordinatorMailbox, SiloMailbox
from cachefl_secure.transport.parcels import ContactCard, Sender
from cachefl_secure.transport.store import ObjectStore
from tests import party
from tests.processes import PATIENCE_SECONDS, start_forkserver

FEDERATION = FederationId("0123456789abcdef0123456789abcdef")
MIB = 1 << 20


def _sender(name: str) -> Sender:
    return Sender(FEDERATION, name, SigningKey.generate(), TransportKey.generate())


@dataclass
class Ends:
    """A coordinator and silos at one folder; the silos send back what they get, turned round."""

    root: Path
    silos: dict[SiloId, Sender]
    coordinator: Sender = field(default_factory=lambda: _sender(COORDINATOR))

    def __post_init__(self) -> None:
        self.store = ObjectStore.open(f"dir://{self.root / FEDERATION}")
        self.store.make()

    def channel(self, limit_bytes: int = MIB) -> CoordinatorMailbox:
        state = StateDir(self.root / "coordinator")
        state.root.mkdir(exist_ok=True)
        identities = {silo: [sender.identity.public_key] for silo, sender in self.silos.items()}
        return CoordinatorMailbox(
            self.store, self.coordinator, state, lambda: identities, limit_bytes=limit_bytes
        )

    def objects(self) -> list[str]:
        """What lies in the store, but for contact cards."""
        found = (path for path in (self.root / FEDERATION).rglob("*") if path.is_file())
        return sorted(path.name for path in found if "contacts" not in path.parts)

    @contextmanager
    def serving(self) -> Iterator[None]:
        stop, threads = Event(), []
        for sender in self.silos.values():
            silo = SiloMailbox(
                self.store,
                lambda sender=sender: sender,  # type: ignore[misc]
                self.coordinator.identity.public_key,
                limit_bytes=MIB,
            )
            arguments: dict[str, object] = {"stop": stop}
            threads.append(threading.Thread(target=silo.serve, args=(_turned,), kwargs=arguments))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def _turned(phase: str, content: bytes) -> bytes:
    return content[::-1]


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    return Ends(tmp_path, {SiloId(name): _sender(name) for name in ("silo-1", "silo-2")})


def test_messages_of_64_mib_go_to_a_process_and_back_unchanged_and_a_longer_answer_is_not_read(
    ends: Ends,
) -> None:
    """The coordinator's limit comes from the plan; the silo counts as dropped."""
    start_forkserver()
    (silo, sender), _ = ends.silos.items()
    secrets = sender.identity.reveal(), sender.transport_key.reveal()
    arguments = (ends.store.url, silo, secrets, ends.coordinator.identity.public_key)
    process = multiprocessing.get_context("forkserver").Process(
        target=party.echo, args=arguments, daemon=True
    )
    process.start()
    try:
        large = np.random.default_rng(64).bytes(64 * MIB)
        replies = ends.channel(64 * MIB).exchange("masked-input", {silo: large}, PATIENCE_SECONDS)
        assert replies[silo] == large[::-1]
        longer = bytes(2 * parcels.limit_bytes(1024))
        assert ends.channel(1024).exchange("masked-input", {silo: longer}, 2.0) == {}
    finally:
        process.kill()
        process.join()


def test_a_contact_card_with_an_unusable_key_leaves_out_its_silo_and_no_other(ends: Ends) -> None:
    """Signed by the silo itself: with this key everybody would know what is sealed to it."""
    hostile, honest = sorted(ends.silos)
    sender = ends.silos.pop(hostile)
    covered = parcels._card_bytes(FEDERATION, hostile, bytes(32))
    signature = sender.identity.sign("cachefl-secure/contact-card/1", covered)
    card = wire.encode(ContactCard(FEDERATION, hostile, bytes(32), signature))
    ends.store.put(f"{FEDERATION}/contacts/{hostile}/0000000000000000", card)
    with ends.serving():
        ends.silos[hostile] = sender
        replies = ends.channel().exchange("hello", {hostile: b"abc", honest: b"abc"}, 3.0)
    assert replies == {honest: b"cba"}


def test_a_store_that_refuses_after_it_has_written_changes_no_request(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The silo answers what it found first; a second sealing of the same request would be another parcel."""
    put, refused = ObjectStore.put, set[str]()

    def refusing(self: ObjectStore, name: str, *pieces: bytes | memoryview) -> None:
        put(self, name, *pieces)
        if "/to/" in name and name not in refused:
            refused.add(name)
            _until(lambda: self.has(f"{FEDERATION}/from/{1:012d}/{name.split('/')[2]}"))
            raise TransportError(self.url, "timed out")

    monkeypatch.setattr(ObjectStore, "put", refusing)
    with ends.serving():
        replies = ends.channel().exchange("hello", dict.fromkeys(ends.silos, b"abc"), 5.0)
    assert replies == dict.fromkeys(ends.silos, b"cba")
    assert len(refused) == 2


def test_drafts_that_a_crash_left_are_cleared_with_their_exchange(ends: Ends) -> None:
    channel = ends.channel()
    with ends.serving():
        channel.exchange("hello", dict.fromkeys(ends.silos, b"abc"), PATIENCE_SECONDS)
        for folder in (f"from/{1:012d}", "to/silo-1"):
            place = ends.root / FEDERATION / FEDERATION / folder
            place.mkdir(parents=True, exist_ok=True)
            (place / ".part-0123").write_bytes(b"half")
        channel.exchange("sync", dict.fromkeys(ends.silos, b"abc"), PATIENCE_SECONDS)
    assert ends.objects() == []


def test_an_answer_in_the_way_is_replaced_when_its_silo_comes_back(ends: Ends) -> None:
    """Cut off by the store, or put there by somebody: what is not the silo's own answer is none."""
    silo = SiloId("silo-1")
    announce(ends.store, ends.coordinator)
    request = ends.coordinator.pack(silo, ends.silos[silo].transport_key.public_key, 1, "hello", b"abc")
    folder, answers = f"{FEDERATION}/to/{silo}", f"{FEDERATION}/from/{1:012d}"
    ends.store.put(f"{folder}/{1:012d}-hello", wire.encode(request))
    ends.store.put(f"{answers}/{silo}", b"half of an answer")
    with ends.serving():
        _until(lambda: ends.store.get(f"{answers}/{silo}", limit_bytes=MIB) != b"half of an answer")
    answer = parcels.read_parcel(
        ends.store.get(f"{answers}/{silo}", limit_bytes=MIB) or b"",
        federation_id=FEDERATION,
        sender=silo,
        recipient=COORDINATOR,
        identities=(ends.silos[silo].identity.public_key,),
    )
    assert (answer.label.answers, ends.coordinator.unpack(answer)) == (request.digest, b"cba")


def _until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)

"""The mailbox on an honest store, and on stores that lose, delay, cut, swap and bring back.

On a hostile store an exchange ends in right answers or in absence: never in a wrong answer, in another silo's,
or in an exception that is not documented.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefl_secure.crypto.hpke import TransportKey
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import ConfigError, TransportError
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import COORDINATOR, FederationId, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.transport import mailbox, parcels
from cachefl_secure.transport.contacts import announce, find_transport_key
from cachefl_secure.transport.mailbox import (
    EXCHANGE_FILE,
    CoordinatorMailbox,
    SiloMailbox,
    answer_name,
    request_name,
)
from cachefl_secure.transport.parcels import ContactCard, Parcel, Sender, read_parcel
from cachefl_secure.transport.store import ObjectStore
from tests.transport.hostile import Clock, HostileStore, WatchedStore, memory_url

HERE = FederationId("0f" * 16)
A, B, C = SILOS = (SiloId("silo-a"), SiloId("silo-b"), SiloId("silo-c"))
DEADLINE = 20.0


class Office:
    """A coordinator and three silos at one store, on one thread and one clock; silos act while the coordinator waits."""

    def __init__(
        self,
        root: Path,
        store: WatchedStore,
        monkeypatch: pytest.MonkeyPatch,
        *,
        seed: int = 0,
        keep_parcels: bool = False,
    ) -> None:
        self.store, self.state, self.keep = store, StateDir.create(root / "coordinator"), keep_parcels
        self.own = Sender(HERE, COORDINATOR, self.state.signing_key(), self.state.transport_key())
        self.senders = {
            silo: Sender(HERE, silo, SigningKey.generate(), TransportKey.generate()) for silo in SILOS
        }
        self.asked: dict[SiloId, list[bytes]] = {silo: [] for silo in SILOS}
        self.said: dict[SiloId, list[str]] = {silo: [] for silo in SILOS}
        self.silos = {silo: self.silo(silo) for silo in SILOS}
        self._random, self._stop = random.Random(seed), threading.Event()
        self.clock = Clock(self.turn)
        monkeypatch.setattr(mailbox, "time", self.clock.as_module())
        self.restart()

    def restart(self) -> None:
        """Of the coordinator."""
        self.channel = CoordinatorMailbox(
            self.store,
            self.own,
            self.state,
            lambda: {silo: (sender.identity.public_key,) for silo, sender in self.senders.items()},
            limit_bytes=1 << 16,
            keep_parcels=self.keep,
        )

    def silo(self, silo: SiloId) -> SiloMailbox:
        """A silo's process, begun anew."""
        return SiloMailbox(
            self.store,
            lambda: self.senders[silo],
            self.own.identity.public_key,
            limit_bytes=1 << 16,
            tell=self.said[silo].append,
        )

    def answer(self, silo: SiloId) -> Callable[[str, bytes], bytes]:
        """Never the same twice: a request that is answered twice shows."""

        def handler(phase: str, content: bytes) -> bytes:
            self.asked[silo].append(content)
            return b"%s|%s|%s|%d" % (silo.encode(), phase.encode(), content, len(self.asked[silo]))

        return handler

    def turn(self) -> None:
        for silo in self._random.sample(SILOS, len(SILOS)):
            try:
                self.silos[silo]._look(self.answer(silo), self._stop)
            except TransportError:
                continue

    def exchange(self, phase: str, about: str) -> dict[SiloId, bytes]:
        """Each silo is asked about something of its own. Only right answers come back, and not two of one silo."""
        requests = {silo: f"{about} for {silo}".encode() for silo in SILOS}
        answers = self.channel.exchange(phase, requests, DEADLINE)
        for silo, answer in answers.items():
            right = b"%s|%s|%s|" % (silo.encode(), phase.encode(), requests[silo])
            assert answer.startswith(right), (silo, answer)
            assert self.asked[silo].count(requests[silo]) >= 1
        return answers

    def answers_put(self) -> dict[tuple[str, str], set[bytes]]:
        """(silo, request) -> the contents of all answers that this silo ever put."""
        found: dict[tuple[str, str], set[bytes]] = {}
        for name, raw in self.store.seen.puts:
            if "/from/" not in name:
                continue
            silo = SiloId(name.rpartition("/")[2])
            parcel = read_parcel(
                raw,
                federation_id=HERE,
                sender=silo,
                recipient=COORDINATOR,
                identities=(self.senders[silo].identity.public_key,),
            )
            found.setdefault((silo, parcel.label.answers), set()).add(self.own.unpack(parcel))
        return found


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    return Office(tmp_path, WatchedStore(memory_url()), monkeypatch)


def parcels_in(store: WatchedStore) -> list[str]:
    return [name for name in store.everything() if "/contacts/" not in name]


# --- an honest store


def test_each_silo_gets_its_own_request_and_answers_it(office: Office) -> None:
    for phase in ("hello", "sync", "masked-input"):
        assert set(office.exchange(phase, phase)) == set(SILOS)
    assert [len(asked) for asked in office.asked.values()] == [3, 3, 3]


@pytest.mark.parametrize("scheme", ["dir", "memory"])
def test_silos_in_threads_of_their_own_serve_until_they_are_stopped(tmp_path: Path, scheme: str) -> None:
    url = f"dir://{tmp_path / 'shared'}" if scheme == "dir" else memory_url()
    ObjectStore.open(url).make()
    state, stop = StateDir.create(tmp_path / "coordinator"), threading.Event()
    own = Sender(HERE, COORDINATOR, state.signing_key(), state.transport_key())
    senders = {silo: Sender(HERE, silo, SigningKey.generate(), TransportKey.generate()) for silo in SILOS}
    keys = {silo: (sender.identity.public_key,) for silo, sender in senders.items()}
    channel = CoordinatorMailbox(ObjectStore.open(url), own, state, lambda: keys, limit_bytes=1 << 24)

    def serve(silo: SiloId) -> None:
        silo_mailbox = SiloMailbox(
            ObjectStore.open(url), lambda: senders[silo], own.identity.public_key, limit_bytes=1 << 24
        )
        silo_mailbox.serve(lambda phase, content: silo.encode() + content[::-1], stop=stop)

    threads = [threading.Thread(target=serve, args=(silo,)) for silo in SILOS]
    for thread in threads:
        thread.start()
    try:
        for content in (b"", b"short", bytes(range(256)) * (1 << 12)):
            answers = channel.exchange("share", dict.fromkeys(SILOS, content), DEADLINE)
            assert answers == {silo: silo.encode() + content[::-1] for silo in SILOS}
        # A silo that nobody knows has no contact card: the others are not kept from answering.
        answers = channel.exchange("share", {A: b"1", SiloId("nobody"): b"2"}, 0.5)
        assert answers == {A: b"silo-a1"}
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_parcels_are_deleted_when_an_exchange_is_over_and_cards_stay(office: Office) -> None:
    office.exchange("hello", "one")
    assert parcels_in(office.store) == []
    assert len(office.store.everything()) == 4


def test_parcels_are_kept_where_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office(tmp_path, WatchedStore(memory_url()), monkeypatch, keep_parcels=True)
    office.exchange("hello", "one")
    office.exchange("sync", "two")
    assert len(parcels_in(office.store)) == 12
    # Who begins anew finds its answers, and does not answer again.
    office.silos = {silo: office.silo(silo) for silo in SILOS}
    office.turn()
    assert [len(asked) for asked in office.asked.values()] == [2, 2, 2]


def test_what_a_late_answer_left_is_deleted_by_a_later_exchange(office: Office) -> None:
    office.turn()  # all leave their cards
    late, office.silos[A] = office.silos[A], _Asleep(office)
    assert set(office.exchange("hello", "one")) == {B, C}
    (request,) = [raw for name, raw in office.store.seen.puts if f"/to/{A}/" in name]
    parcel = wire.decode(request, Parcel, limit_bytes=1 << 20, peer="x")
    office.store.put(answer_name(parcel), b"late")
    office.silos[A] = late
    assert set(office.exchange("sync", "two")) == set(SILOS)
    assert parcels_in(office.store) == []


class _Asleep(SiloMailbox):
    def __init__(self, office: Office) -> None:
        pass

    def _look(self, *_: object) -> bool:
        return False


def test_numbers_never_repeat_after_a_restart_and_are_kept_before_they_are_used(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.exchange("hello", "one")
    office.restart()
    office.exchange("hello", "two")
    numbers = [name.rpartition("/")[2] for name, _ in office.store.seen.puts if f"/to/{A}/" in name]
    assert numbers == ["000000000001-hello", "000000000002-hello"]

    def full(*_: object, **__: object) -> None:
        raise ConfigError("exchange", "", "no space left on device")

    puts = len(office.store.seen.puts)
    monkeypatch.setattr(StateDir, "write", full)
    with pytest.raises(ConfigError):
        office.exchange("hello", "three")
    assert len(office.store.seen.puts) == puts


@pytest.mark.parametrize("content", [b"", b"seven", b"-1", b"\xff\xfe", "\u00b2".encode()])
def test_a_damaged_number_is_a_sentence(office: Office, content: bytes) -> None:
    office.state.write(EXCHANGE_FILE, content)
    with pytest.raises(ConfigError):
        office.exchange("hello", "one")


def test_a_killed_silo_goes_on_with_the_requests_that_have_no_answer(office: Office) -> None:
    """Killed before its answer lay there, it is asked again; killed afterwards, it is not."""
    office.turn()  # all leave their cards
    killed = iter([True, False])

    def turn() -> None:
        if next(killed, False):
            office.store.put, genuine = _lost, office.store.put  # type: ignore[method-assign]
            office.silos[A]._look(office.answer(A), threading.Event())
            office.store.put = genuine  # type: ignore[method-assign]
        office.silos[A] = office.silo(A)
        Office.turn(office)

    office.clock.everybody = turn
    assert set(office.exchange("hello", "one")) == set(SILOS)
    assert len(office.asked[A]) == 2


def _lost(name: str, *pieces: bytes | memoryview) -> None:
    """The process ends before the bytes are there."""


# --- stores that come back


class _Failing(WatchedStore):
    """Some puts raise, before or after the object is there."""

    def __init__(self, url: str, *, at: str, after: bool, times: int) -> None:
        super().__init__(url)
        self._at, self._after, self._times = at, after, times

    def put(self, name: str, *pieces: bytes | memoryview) -> None:
        fails = self._at in name and self._times > 0
        if fails:
            self._times -= 1
        if not fails or self._after:
            super().put(name, *pieces)
        if fails:
            raise TransportError(self.url, "timed out")


@pytest.mark.parametrize("at", ["/to/silo-a/", "/from/"])
@pytest.mark.parametrize("after", [False, True])
def test_a_put_that_fails_is_repeated_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, after: bool
) -> None:
    """Sealed anew it would be another request, which the answer to the first does not answer; and no handler runs twice."""
    office = Office(tmp_path, _Failing(memory_url(), at=at, after=after, times=4), monkeypatch)
    assert set(office.exchange("hello", "one")) == set(SILOS)
    assert [len(asked) for asked in office.asked.values()] == [1, 1, 1]
    put: dict[str, set[bytes]] = {}
    for name, content in office.store.seen.puts:
        put.setdefault(name, set()).add(content)
    assert {len(contents) for contents in put.values()} == {1}


def test_a_store_that_is_away_until_the_deadline_is_a_transport_error(office: Office) -> None:
    class Away(WatchedStore):
        def names(self, folder: str, *, drafts: bool = False) -> list[str]:
            raise TransportError(self.url, "is away")

    office.store = Away(memory_url())
    office.restart()
    with pytest.raises(TransportError):
        office.channel.exchange("hello", dict.fromkeys(SILOS, b""), 3.0)


def test_a_silo_says_once_that_the_store_is_away_and_once_that_it_is_back(tmp_path: Path) -> None:
    stop, said, looks = threading.Event(), list[str](), [0]

    class Flickering(WatchedStore):
        def names(self, folder: str, *, drafts: bool = False) -> list[str]:
            looks[0] += 1
            if looks[0] > 6:
                stop.set()
            if looks[0] in (2, 3, 4):
                raise TransportError("memory://", "is away")
            return super().names(folder, drafts=drafts)

    sender = Sender(HERE, A, SigningKey.generate(), TransportKey.generate())
    coordinator, url = SigningKey.generate(), memory_url()
    announce(ObjectStore.open(url), Sender(HERE, COORDINATOR, coordinator, TransportKey.generate()))
    silo = SiloMailbox(
        Flickering(url),
        lambda: sender,
        coordinator.public_key,
        limit_bytes=9,
        tell=said.append,
    )
    silo.serve(lambda phase, content: content, stop=stop)
    assert [sentence.partition(",")[0] for sentence in said] == [
        "the store cannot be reached",
        "the store is back",
    ]


class _Unreadable(WatchedStore):
    """A fellow silo left objects that only it may read: in the coordinator's cards, in A's requests, as its answer."""

    def names(self, folder: str, *, drafts: bool = False) -> list[str]:
        found = super().names(folder, drafts=drafts)
        return ["000-unreadable", *found] if "/contacts" in folder or "/to/" in folder else found

    def get(self, name: str, *, limit_bytes: int) -> bytes | None:
        if "unreadable" in name or name.endswith(f"from/{1:012d}/{A}"):
            raise TransportError(self.url, "Permission denied")
        return super().get(name, limit_bytes=limit_bytes)


def test_what_one_silo_lets_nobody_read_keeps_no_other_from_answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = Office(tmp_path, _Unreadable(memory_url()), monkeypatch)
    assert set(office.exchange("hello", "one")) == {B, C}


def test_a_silo_with_a_key_that_nothing_can_be_sealed_to_is_absent(office: Office) -> None:
    """It signed its card itself; the exchange with the others goes on."""
    identity = office.senders[A].identity
    covered = parcels._card_bytes(HERE, A, bytes(32))
    card = ContactCard(HERE, A, bytes(32), identity.sign(parcels._CARD_PURPOSE, covered))
    office.store.put(f"{HERE}/contacts/{A}/{'0' * 16}", wire.encode(card))
    office.silos[A] = _Asleep(office)
    assert set(office.exchange("hello", "one")) == {B, C}


# --- a request comes back


def test_a_request_that_comes_back_is_not_answered_again(office: Office) -> None:
    office.exchange("hello", "one")
    requests = [(name, raw) for name, raw in office.store.seen.puts if "/to/" in name]
    office.turn()  # they are gone, and seen to be
    for name, raw in requests:
        office.store.put(name, raw)
        office.store.put(name.replace("-hello", "-later"), raw)
    office.turn()
    assert [len(asked) for asked in office.asked.values()] == [1, 1, 1]
    assert {len(contents) for contents in office.answers_put().values()} == {1}


def test_a_request_of_another_place_or_sender_is_left_unanswered_and_told_once(office: Office) -> None:
    """Silo B's request in A's folder; and one that B made itself, in the coordinator's name."""
    card = office.senders[A].transport_key.public_key
    stranger = Sender(HERE, COORDINATOR, office.senders[B].identity, office.senders[B].transport_key)
    forged = stranger.pack(A, card, 9, "hello", b"forged")
    moved = office.own.pack(B, office.senders[B].transport_key.public_key, 8, "hello", b"moved")
    office.store.put(request_name(forged), wire.encode(forged))
    office.store.put(request_name(forged).replace("09-", "08-"), wire.encode(moved))
    for _ in range(50):
        office.turn()
    assert office.asked[A] == []
    assert len(office.said[A]) == 2
    assert all("left unanswered" in sentence for sentence in office.said[A])


def test_an_answer_of_another_silo_is_not_taken(office: Office) -> None:
    """B answers A's request, under its own name and under A's, in A's place."""
    hers = office.senders[B]

    def turn() -> None:
        for name, raw in list(office.store.seen.puts):
            if f"/to/{A}/" in name:
                request = wire.decode(raw, Parcel, limit_bytes=1 << 20, peer="x")
                for sender in (hers, Sender(HERE, A, hers.identity, hers.transport_key)):
                    forged = sender.pack(
                        COORDINATOR,
                        office.own.transport_key.public_key,
                        1,
                        "hello",
                        b"forged",
                        request.digest,
                    )
                    office.store.put(answer_name(request), wire.encode(forged))

    office.clock.everybody = turn
    assert office.channel.exchange("hello", {A: b"one"}, 2.0) == {}


def test_an_answer_to_another_request_is_not_taken(office: Office) -> None:
    """Genuine, from this silo, with this number: but made for other content, or for the exchange before."""
    silo = office.senders[A]

    def turn() -> None:
        forged = silo.pack(COORDINATOR, office.own.transport_key.public_key, 1, "hello", b"forged", "ab" * 32)
        office.store.put(f"{HERE}/from/{1:012d}/{A}", wire.encode(forged))

    announce(office.store, silo)
    office.clock.everybody = turn
    assert office.channel.exchange("hello", {A: b"one"}, 2.0) == {}


# --- contact cards


def test_a_strangers_card_is_not_used(office: Office) -> None:
    stranger = Sender(HERE, A, SigningKey.generate(), TransportKey.generate())
    announce(office.store, stranger)
    office.store.put(f"{HERE}/contacts/{A}/zzz", b"no card")
    office.store.put(f"{HERE}/contacts/{A}/000", office.senders[B].card())
    identities = (office.senders[A].identity.public_key,)
    assert find_transport_key(office.store, HERE, A, identities) is None
    announce(office.store, office.senders[A])
    assert find_transport_key(office.store, HERE, A, identities) == office.senders[A].transport_key.public_key


@pytest.mark.parametrize("key", range(1, 9))
def test_a_party_that_lost_its_transport_key_is_written_to_with_the_new_one(office: Office, key: int) -> None:
    """Whichever of the two cards would be read last."""
    office.exchange("hello", "one")
    office.senders[A] = Sender(HERE, A, office.senders[A].identity, TransportKey(bytes([key]) * 32))
    office.silos[A] = office.silo(A)
    office.turn()
    assert set(office.exchange("hello", "two")) == set(SILOS)
    assert len(office.store.everything()) == 4


def test_a_card_that_was_damaged_is_left_again_by_who_begins_anew(office: Office) -> None:
    office.exchange("hello", "one")
    for name in list(office.store.everything()):
        office.store.put(name, b"damaged")
    office.restart()
    office.silos = {silo: office.silo(silo) for silo in SILOS}
    assert set(office.exchange("hello", "two")) == set(SILOS)


def test_the_latest_of_several_identities_is_written_to(office: Office) -> None:
    """While a silo's key changes."""
    old, new = office.senders[A], Sender(HERE, A, SigningKey.generate(), TransportKey.generate())
    announce(office.store, old)
    keys = (old.identity.public_key, new.identity.public_key)
    assert find_transport_key(office.store, HERE, A, keys) == old.transport_key.public_key
    announce(office.store, new)
    assert find_transport_key(office.store, HERE, A, keys) == new.transport_key.public_key


# --- hostile stores


@pytest.fixture(params=range(12))
def hostile(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    seed = request.param
    store = HostileStore(memory_url(), seed, mischief=(0.05, 0.2, 0.5, 0.8)[seed % 4])
    return Office(tmp_path, store, monkeypatch, seed=seed)


def test_a_hostile_store_takes_answers_away_and_makes_none(hostile: Office) -> None:
    for index, phase in enumerate(("hello", "sync", "manifest", "share", "masked-input", "unmask")):
        try:
            hostile.exchange(phase, f"exchange {index}")
        except TransportError:
            continue
    # Nothing was asked twice, and no request ever had two answers.
    for asked in hostile.asked.values():
        assert len(set(asked)) == len(asked)
    assert all(len(contents) == 1 for contents in hostile.answers_put().values())
    assert isinstance(hostile.store, HostileStore)
    hostile.store.calm()
    # What the store did is over with it: nothing that it kept stands in the way of later exchanges.
    assert set(hostile.exchange("hello", "the store is calm")) == set(SILOS)


def test_a_hostile_store_and_restarts_of_everybody_make_no_wrong_answer(hostile: Office) -> None:
    numbers: list[int] = []
    for index in range(6):
        hostile.silos = {silo: hostile.silo(silo) for silo in SILOS}
        hostile.restart()
        with contextlib.suppress(TransportError):
            hostile.exchange("share", f"exchange {index}")
        numbers.append(int(hostile.state.read(EXCHANGE_FILE)))
    assert numbers == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("seed", range(4))
def test_where_cards_are_meddled_with_too_it_is_absence_or_a_transport_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    store = HostileStore(memory_url(), seed, mischief=0.3, spare_cards=False)
    try:
        office = Office(tmp_path, store, monkeypatch, seed=seed)
        for index in range(3):
            office.exchange("share", f"exchange {index}")
    except TransportError:
        return

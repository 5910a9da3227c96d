"""The mailbox: coordinator and silos exchange parcels through a store, with no server and no open port.

    <federation>/contacts/<party>/<digest>        contact cards: transport keys, signed; the coordinator's from the start
    <federation>/requests/<plan>/<silo>.<digest>.toml    join requests, public (``mailbox_enrolment``)
    <federation>/to/<silo>/<number>-<phase>       requests, one for each silo and exchange
    <federation>/from/<number>/<silo>             answers

An object is written once. Exchanges are numbered, and the number is on the coordinator's disk before its requests
leave; an answer names the request that it answers. So what a store delays, repeats, reorders or shows cut off is
skipped or looked at again, and whoever was killed goes on: the coordinator with the next number, a silo with the
requests that have no answer yet. Repeating a request to a silo is harmless (``silo_round``, rule 6).

When an exchange is over the coordinator deletes its parcels, unless told to keep them; contact cards and join
requests stay.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event

from cachefl_secure.errors import ConfigError, PeerError, TransportError, UnexpectedMessage
from cachefl_secure.federation.ports import Handler
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import COORDINATOR, PublicKeyHex, SiloId
from cachefl_secure.transport import parcels
from cachefl_secure.transport.contacts import announce, check_place, find_transport_key
from cachefl_secure.transport.parcels import Parcel, Sender
from cachefl_secure.transport.store import DRAFT, ObjectStore

EXCHANGE_FILE = "engine/exchange"
"""Number of the coordinator's last exchange, as text."""

_NUMBER, _REQUEST = re.compile(r"[0-9]{12}"), re.compile(r"([0-9]{12})-([a-z-]{1,32})")
_TELL_SECONDS = 5.0
_ANNOUNCE_SECONDS = 60.0
_REMEMBERED = 4096  # requests that a store cannot make a silo handle again by bringing them back
_UNSENT = 2  # answers kept for a store that does not take them: each may be an update long
_TRIES = 40  # looks at a request that does not verify, in case it is still being written
_SELDOM = 10  # looks that such a request is passed over for one that it is read again

Identities = Callable[[], Mapping[SiloId, Sequence[PublicKeyHex]]]
"""The signing keys that a silo's parcels may carry: its present one, and while keys change the one before."""

Waiting = Callable[[str, Sequence[SiloId], float], None]
"""(phase, silos that have not answered, seconds since they were asked); called every few seconds."""


def says_nothing(phase: str, missing: Sequence[SiloId], seconds: float) -> None:
    """A ``Waiting`` that tells nobody."""


@dataclass(slots=True)
class _Pace:
    """Pauses between looks at a store: short after something happened, longer and longer after nothing did."""

    shortest_seconds: float
    longest_seconds: float
    _next: float = field(init=False)

    def __post_init__(self) -> None:
        self.hurry()

    def hurry(self) -> None:
        self._next = self.shortest_seconds

    def pause(self) -> float:
        pause, self._next = self._next, min(1.5 * self._next, self.longest_seconds)
        return pause


def _pace_at(store: ObjectStore) -> _Pace:
    return _Pace(0.005, 0.5) if store.is_near else _Pace(0.2, 2.0)


class CoordinatorMailbox:
    """The coordinator's channel; see ``ports.CoordinatorChannel``."""

    def __init__(
        self,
        store: ObjectStore,
        sender: Sender,
        state: StateDir,
        identities: Identities,
        *,
        limit_bytes: int,
        waiting: Waiting = says_nothing,
        keep_parcels: bool = False,
    ) -> None:
        """``limit_bytes``: no answer of a silo is longer. Longer ones are not read."""
        self._store, self._sender, self._state = store, sender, state
        self._identities, self._limit_bytes = identities, limit_bytes
        self._waiting, self._keeps = waiting, keep_parcels
        announce(store, sender)

    def check_place(self) -> None:
        """See ``contacts.check_place``."""
        sender = self._sender
        check_place(self._store, sender.federation_id, sender.identity.public_key, any_sign=True)

    def exchange(
        self, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        """Silos that have no contact card yet are looked for until the deadline.

        Raises:
            TransportError: the store could not be reached at any time until the deadline, or was not this federation's.
            ConfigError: the exchange's number could not be kept.
        """
        if not requests:
            return {}
        round_trip = _Exchange(self._next_number(), phase, self._identities())
        started, told, pace = time.monotonic(), _TELL_SECONDS, _pace_at(self._store)
        reached = False
        while True:
            before = len(round_trip.answers)
            # A store may come back, and what cannot be read or written for one silo is not the others' trouble.
            troubles = [*self._send(round_trip, requests), *self._collect(round_trip)]
            reached = reached or not troubles
            missing = sorted(set(requests) - set(round_trip.answers))
            passed = time.monotonic() - started
            if not missing or passed >= deadline_seconds:
                break
            if len(round_trip.answers) > before:
                pace.hurry()
            if passed >= told:
                self._waiting(phase, missing, passed)
                told = passed + _TELL_SECONDS
            time.sleep(min(pace.pause(), deadline_seconds - passed))
        if not reached and not round_trip.answers:
            raise troubles[0]
        if not self._keeps:
            self._clear(round_trip.number, list(requests))
        return round_trip.answers

    def _next_number(self) -> int:
        """On disk before it is used: silos answer each number once."""
        number = 0
        if self._state.has(EXCHANGE_FILE):
            text = self._state.read(EXCHANGE_FILE).decode("ascii", "replace")
            if not text.isdecimal():
                raise ConfigError(str(self._state.path(EXCHANGE_FILE)), "", "not a number")
            number = int(text)
        self._state.write(EXCHANGE_FILE, str(number + 1).encode())
        return number + 1

    def _send(self, exchange: _Exchange, requests: Mapping[SiloId, bytes]) -> list[TransportError]:
        troubles: list[TransportError] = []
        for silo in requests:
            if silo in exchange.sent:
                continue
            try:
                # What may have arrived although the store said no is sent again, the same bytes: packed anew it
                # would be another request, which the answer to the first does not answer.
                parcel = exchange.packed.get(silo) or self._pack(exchange, silo, requests[silo])
                if parcel is None:
                    continue
                exchange.packed[silo] = parcel
                self._store.put(request_name(parcel), *parcel.pieces())
            except TransportError as error:
                troubles.append(error)
                continue
            exchange.sent[silo] = exchange.packed.pop(silo).digest
        if not exchange.sent and not troubles:
            try:
                self.check_place()
            except TransportError as error:
                troubles.append(error)
        return troubles

    def _pack(self, exchange: _Exchange, silo: SiloId, content: bytes) -> Parcel | None:
        """None until the silo has left a contact card with a key that can be sealed to."""
        identities = exchange.identities.get(silo, ())
        public_key = find_transport_key(self._store, self._sender.federation_id, silo, identities)
        if public_key is None:
            return None
        try:
            return self._sender.pack(silo, public_key, exchange.number, exchange.phase, content)
        except PeerError:
            return None

    def _collect(self, exchange: _Exchange) -> list[TransportError]:
        troubles: list[TransportError] = []
        folder = f"{self._sender.federation_id}/from/{exchange.number:012d}"
        try:
            names = self._store.names(folder)
        except TransportError as error:
            return [error]
        for name in names:
            silo = SiloId(name)
            if silo not in exchange.sent or silo in exchange.answers:
                continue
            try:
                raw = self._store.get(f"{folder}/{name}", limit_bytes=parcels.limit_bytes(self._limit_bytes))
                if raw is not None:
                    exchange.answers[silo] = self._open(exchange, silo, raw)
            except TransportError as error:
                troubles.append(error)
            except PeerError:
                continue  # cut off, or somebody else's: perhaps it is still being written
        return troubles

    def _open(self, exchange: _Exchange, silo: SiloId, raw: bytes) -> bytes:
        parcel = parcels.read_parcel(
            raw,
            federation_id=self._sender.federation_id,
            sender=silo,
            recipient=COORDINATOR,
            identities=exchange.identities.get(silo, ()),
        )
        if parcel.label.answers != exchange.sent[silo]:
            raise PeerError(silo, "the answer to another request")
        return self._sender.unpack(parcel)

    def _clear(self, number: int, silos: Sequence[SiloId]) -> None:
        """This exchange's parcels, and what late answers left of earlier ones."""
        root = self._sender.federation_id
        try:
            for at in self._store.folders(f"{root}/from"):
                if _NUMBER.fullmatch(at) and int(at) <= number:
                    self._empty(f"{root}/from/{at}", lambda name: True)
            for silo in silos:
                self._empty(f"{root}/to/{silo}", lambda name: _number_of(name) <= number)
        except TransportError:
            return  # next time

    def _empty(self, folder: str, is_over: Callable[[str], bool]) -> None:
        """Removes the folder's drafts, and the objects that are over."""
        for name in self._store.names(folder, drafts=True):
            if name.startswith(DRAFT) or is_over(name):
                self._store.remove(f"{folder}/{name}")
        self._store.remove_folder(folder)


@dataclass(slots=True)
class _Exchange:
    number: int
    phase: str
    identities: Mapping[SiloId, Sequence[PublicKeyHex]]
    sent: dict[SiloId, str] = field(default_factory=dict)
    """Silo -> digest of its request."""
    packed: dict[SiloId, Parcel] = field(default_factory=dict)
    """Silo -> its request, until the store has taken it."""
    answers: dict[SiloId, bytes] = field(default_factory=dict)


class SiloMailbox:
    """A silo's channel; see ``ports.SiloChannel``."""

    def __init__(
        self,
        store: ObjectStore,
        sender: Callable[[], Sender],
        coordinator_key: PublicKeyHex,
        *,
        limit_bytes: int,
        limit_of: Callable[[str], int] | None = None,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """``limit_bytes``: no request is longer, or in some phase ``limit_of`` it. Longer ones are not read.

        ``sender`` is asked for every parcel: this silo's signing key may change while it serves.
        """
        self._store, self._sender, self._coordinator_key = store, sender, coordinator_key
        self._limit_bytes, self._tell = limit_bytes, tell
        self._limit_of = limit_of or (lambda phase: limit_bytes)
        self._done_with: set[str] = set()  # names in the folder
        self._handled: dict[str, None] = {}  # digests of the last requests, in order
        self._unsent: dict[str, Parcel] = {}  # such a digest -> the answer, until the store has taken it
        self._refused: dict[str, tuple[bytes, int]] = {}
        """Name -> digest of what lies there and does not verify, and how often it was looked at."""
        self._announced: PublicKeyHex | None = None
        self._announce_again = 0.0
        self._reachable = True

    def serve(self, handler: Handler, *, stop: Event) -> None:
        """Requests are answered in the order of their numbers. A store that cannot be reached is tried again."""
        pace = _pace_at(self._store)
        while not stop.is_set():
            try:
                worked = self._look(handler, stop)
                self._note_reachable(True)
            except TransportError as error:
                self._note_reachable(False, str(error))
                worked = False
            if worked:
                pace.hurry()
            stop.wait(pace.pause())

    def _note_reachable(self, reachable: bool, why: str = "") -> None:
        if reachable != self._reachable:
            self._tell(
                "the store is back" if reachable else f"the store cannot be reached, trying again: {why}"
            )
            self._reachable = reachable

    def _look(self, handler: Handler, stop: Event) -> bool:
        """Whether there was anything to do."""
        sender = self._sender()
        if self._announced != sender.identity.public_key or time.monotonic() > self._announce_again:
            # A share that is not mounted is an empty folder, which nobody should begin to write in.
            check_place(self._store, sender.federation_id, self._coordinator_key)
            announce(self._store, sender)  # now and then again: somebody may have taken the card away
            self._announced = sender.identity.public_key
            self._announce_again = time.monotonic() + _ANNOUNCE_SECONDS
        folder = f"{sender.federation_id}/to/{sender.party}"
        names = [name for name in self._store.names(folder) if _REQUEST.fullmatch(name)]
        self._done_with &= set(names)
        self._refused = {name: looks for name, looks in self._refused.items() if name in names}
        worked, trouble = False, None
        for name in names:
            if stop.is_set():
                break
            if name not in self._done_with:
                try:
                    worked |= self._answer(f"{folder}/{name}", name, handler)
                except TransportError as error:  # that one object; the next may be the coordinator's
                    trouble = error
        if trouble is not None:
            raise trouble
        return worked

    def _answer(self, path: str, name: str, handler: Handler) -> bool:
        sender = self._sender()
        seen, looks = self._refused.get(name, (b"", 0))
        if looks >= _TRIES and looks % _SELDOM:
            self._refused[name] = seen, looks + 1
            return False
        limit = self._limit_of(name.partition("-")[2])
        raw = self._store.get(path, limit_bytes=parcels.limit_bytes(limit))
        if raw is None:
            return False
        # Something else under that name is looked at afresh: what lay there first may have been put there to be in the way.
        if looks >= _TRIES and hashlib.sha256(raw).digest() == seen:
            self._refused[name] = seen, looks + 1
            return False
        try:
            parcel = parcels.read_parcel(
                raw,
                federation_id=sender.federation_id,
                sender=COORDINATOR,
                recipient=sender.party,
                identities=(self._coordinator_key,),
            )
            if request_name(parcel) != path:
                raise UnexpectedMessage(COORDINATOR, "request in another place")
            if parcel.digest not in self._handled:
                self._handle(parcel, sender, handler)
        except PeerError as error:
            digest = hashlib.sha256(raw).digest()
            looks = looks + 1 if digest == seen else 1
            self._refused[name] = digest, looks
            if looks == _TRIES:
                self._tell(f"a request is left unanswered: {error}")
            return False
        if parcel.digest in self._unsent:
            self._store.put(answer_name(parcel), *self._unsent[parcel.digest].pieces())
            del self._unsent[parcel.digest]
        self._done_with.add(name)
        return True

    def _handle(self, request: Parcel, sender: Sender, handler: Handler) -> None:
        """Once for each request, as long as this process lives; afterwards an answer that lies there says so."""
        content, public_key = sender.unpack(request), self._coordinator_transport_key(sender)
        if not self._holds_answer(request, sender):
            label = request.label
            reply = handler(label.phase, content)
            # The handler may have given this silo a new signing key: the answer to that still carries the old one.
            answer = sender.pack(COORDINATOR, public_key, label.number, label.phase, reply, request.digest)
            self._unsent[request.digest] = answer
        self._handled[request.digest] = None
        for old in list(self._handled)[:-_REMEMBERED]:
            del self._handled[old]
        for old in list(self._unsent)[:-_UNSENT]:
            del self._unsent[old]

    def _holds_answer(self, request: Parcel, sender: Sender) -> bool:
        """Whether this silo's whole answer lies there: it was killed after it had left it. A torn one is left again."""
        target = answer_name(request)
        if not self._store.has(target):
            return False
        raw = self._store.get(target, limit_bytes=parcels.limit_bytes(self._limit_bytes))
        try:
            answer = parcels.read_parcel(
                raw or b"",
                federation_id=sender.federation_id,
                sender=sender.party,
                recipient=COORDINATOR,
                identities=(sender.identity.public_key,),
            )
        except PeerError:
            return False
        return answer.label.answers == request.digest

    def _coordinator_transport_key(self, sender: Sender) -> bytes:
        found = find_transport_key(self._store, sender.federation_id, COORDINATOR, (self._coordinator_key,))
        if found is None:
            raise PeerError(COORDINATOR, "has left no contact card")
        return found


def _number_of(name: str) -> float:
    """Of the exchange that a request belongs to; beyond all others if it is none."""
    match = _REQUEST.fullmatch(name)
    return int(match[1]) if match else float("inf")


def request_name(parcel: Parcel) -> str:
    """Where a request lies."""
    label = parcel.label
    return f"{label.federation_id}/to/{label.recipient}/{label.number:012d}-{label.phase}"


def answer_name(request: Parcel) -> str:
    """Where the answer to this request belongs."""
    label = request.label
    return f"{label.federation_id}/from/{label.number:012d}/{label.recipient}"
